"""The campaign of `campaign.yaml` as a Python script: the same plan, the same outputs, bit by bit."""

from __future__ import annotations

from pathlib import Path

from campaign import Campaign, Dataset, ServerSpec, StageSpec, Variation

HERE = Path(__file__).resolve().parent

campaign = Campaign(
    campaign="qg-calibration",
    datasets={
        "mc": Dataset(files="data/mc/*/*.root", tree="nominal", is_mc=True, metadata="data/samples.yaml"),
        "data": Dataset(files="data/data/*/*.root", tree="nominal", is_mc=False),
    },
    servers=ServerSpec(
        kind="triton", model_repository="../../model_repository", models={"qg_tagger": {"batch": 8192}}, count=1
    ),
    provider="local",
    stages={
        "select": StageSpec(use="qg.py:select"),
        "predict": StageSpec(
            use="infer",
            from_="select",
            model="qg_tagger",
            inputs={"X": ["pt", "ntrk", "width", "c1"]},
            outputs={"score": "SCORE"},
            keep=True,
        ),
        "first": StageSpec(use="qg.py:fill_nominal", from_="predict", datasets=["mc"]),
        "factors": StageSpec(use="qg.py:reweighting_factors", reduce="first"),
        "second": StageSpec(use="qg.py:fill_options", from_="predict", with_=["factors"]),
        "scale_factors": StageSpec(use="qg.py:extract", reduce="second"),
    },
    variations={
        "jes_up": Variation(datasets=["mc"], tree="JET_JES_1up"),
        "trk_eff": Variation(datasets=["mc"], branches={"jet_nTracks": "jet_nTracks_EFF"}),
        "pdf_7": Variation(datasets=["mc"], weight="pdf_weight[7]"),
    },
).at(HERE)

if __name__ == "__main__":
    print(campaign.run().text())
