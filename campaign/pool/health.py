"""Watches a running server: its counters, and its models' known answers, asked again from time to time.

READY says nothing of this (see `campaign.inference.canary`). A server that does not answer hangs; a model that answers
nothing for a while, or fails, or has gone, is asked for its known answer once more. One that is merely slow is left
alone: as long as it answers requests it lives. Everything that may block is done by threads.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from tritonclient.utils import InferenceServerException

from campaign.errors import ModelError
from campaign.inference import canary
from campaign.inference.canary import FAILED, NOTHING, OK, Counts

LOOK_S = 1.0


class Health:
    """Looks after one server.

    Args:
        client: Of the server.
        models: ``{name: path of its canary or None}``.
        every_s: A model that has answered nothing for so long is asked.
        deadline_s: For its answer.
        silent_s: A server that has said nothing for so long hangs.
        rows_assumed: Models whose first axis was taken to count rows, which is to be proved.

    Attributes:
        counted: Work of the server: rows and executions without those of known answers, times with them.
        threads: Where what may block is done.
    """

    def __init__(
        self, client: Any, models: Mapping[str, str | None], *, every_s: float, deadline_s: float, silent_s: float,
        rows_assumed: Collection[str] = (),
    ) -> None:  # fmt: skip
        self.client, self.models, self.rows_assumed = client, models, rows_assumed
        self.every_s, self.deadline_s, self.silent_s = every_s, deadline_s, silent_s
        self.counted: Counts = {}
        self.threads = ThreadPoolExecutor(len(models) + 1, thread_name_prefix="campaign-health")
        self._baseline: Counts = {}
        self._cost: dict[str, Counts] = {}  # what one canary of a model adds, to itself and to models behind it
        self._last: Counts = {}
        self._good: dict[str, float] = {}  # when each model was last seen to answer
        self._service_s: dict[str, float] = {}  # of one execution: asking a slow model often would slow it down
        self._quarantine: set[str] = set()
        self._asking: dict[str, tuple[Future[str], float]] = {}
        self._failed: dict[str, tuple[ModelError, float, float]] = {}  # until it is known what else was answered
        self._looking: tuple[Future[Counts | None], float] | None = None
        self._looked, self._quiet = 0.0, True
        self._misses, self._silent_since = 0, 0.0

    def prove(self, model: str, deadline_s: float) -> str:
        """The first proof of a model, before anybody else can ask it; blocks.

        Returns:
            A warning, or nothing.

        Raises:
            ModelError: It does not give its known answer.
        """
        before = canary.statistics(self.client) or {}
        if model in self.rows_assumed:
            sent = canary.hold_rows(self.client, model, self.models[model], deadline_s)
            before = self._counted(model, before, sent)
        warning = canary.prove(self.client, model, self.models[model], deadline_s)
        after = self._counted(model, before, 1)
        self._cost[model] = _minus(after, before)
        self._baseline = self._last = after
        self.counted = _minus(after, after)
        self._good[model] = time.monotonic()
        return warning

    def _counted(self, model: str, before: Counts, sent: int) -> Counts:
        """The counters once so many more requests are in them."""
        told: Counts = before
        for _ in range(15):  # counted a moment after it is answered; a user's own backend need not count at all
            told = canary.statistics(self.client) or {}
            if told.get(model, NOTHING)[1] >= before.get(model, NOTHING)[1] + sent:
                break
            time.sleep(0.02)
        return told

    def look(self) -> str:
        """Called again and again; never blocks.

        Returns:
            Why the server is to be replaced; nothing while it is well.
        """
        now = time.monotonic()
        why = self._take_statistics(now) or self._take_answers(now)
        if why:
            return why
        if self._looking is None and now - self._looked > LOOK_S:
            # A canary that is answered in this moment may be counted or not; one that waits for long is not.
            self._quiet = all(now - began > LOOK_S for _, began in self._asking.values())
            self._looking = (self.threads.submit(canary.statistics, self.client), now)
        for model in self.models if self._looking is None else ():  # else it were not known who was counted
            patience = max(self.every_s, 3 * self._service_s.get(model, 0.0))
            due = model in self._quarantine or now - self._good[model] > patience
            if due and model not in self._asking and model not in self._failed:
                asked = self.threads.submit(canary.prove, self.client, model, self.models[model], self.deadline_s)
                self._asking[model] = (asked, now)
        return ""

    def _take_statistics(self, now: float) -> str:
        if self._looking is None or not self._looking[0].done():
            return ""
        (future, asked), self._looking, self._looked = self._looking, None, now
        told = future.result()
        if told is None:
            self._misses += 1
            self._silent_since = self._silent_since or asked
            # More than one: this process itself may have been stopped while it asked.
            if self._misses > 1 and now - self._silent_since > self.silent_s:
                return f"it has not answered for {now - self._silent_since:.0f} s"
            return ""
        self._misses, self._silent_since = 0, 0.0
        for model in self.models:
            then, counts = self._last.get(model), told.get(model)
            if counts and then and counts[OK] > then[OK]:
                self._good[model] = now
                self._service_s[model] = 1e-9 * (counts[2] - then[2]) / max(1, counts[1] - then[1])
            if (counts is None and then) or (counts and then and counts[FAILED] > then[FAILED]):
                self._quarantine.add(model)
        self._last = told
        if self._quiet:
            self.counted = _minus(told, self._baseline)
        for model, (error, began, failed) in list(self._failed.items()):
            if asked > failed:
                del self._failed[model]
                if decisive(error) or self._good[model] < began:
                    return f"model {model} {error.message}"
        return ""

    def _take_answers(self, now: float) -> str:
        for model, (future, began) in list(self._asking.items()):
            if not future.done():
                continue
            del self._asking[model]
            error = future.exception()
            if error is None:
                self._quarantine.discard(model)
                self._good[model] = now
                for other, (rows, executions, _, _, *more) in self._cost[model].items():
                    # Not its times: those of the first one, on a cold server, are far too long for the next ones.
                    cost = [rows, executions, 0, 0, *more]
                    self._baseline[other] = _add(self._baseline.get(other, NOTHING), cost)
            elif isinstance(error, ModelError):
                if decisive(error):
                    return f"model {model} {error.message}"
                self._failed[model] = (error, began, now)
            else:
                return f"model {model}: {type(error).__name__}: {error}"
        return ""

    def settle(self, wait_s: float = 0.5) -> None:
        """Count what is there at the end; waits a little for a canary under way."""
        end = time.monotonic() + wait_s
        while self._asking and time.monotonic() < end:
            self._take_answers(time.monotonic())
            time.sleep(0.01)
        time.sleep(0.05)  # the server counts a request a moment after it has answered
        told = canary.statistics(self.client, 1.0)
        if told:
            self.counted = _minus(told, self._baseline)

    def close(self) -> None:
        """Let the threads go; the server has ended, so none of them waits for it."""
        self.threads.shutdown(wait=True, cancel_futures=True)
        self.client.close()


def decisive(error: ModelError) -> bool:
    """True if the failure of a known answer proves that the model is broken, even if the server is busy."""
    cause = error.__cause__
    if not isinstance(cause, InferenceServerException):
        return True  # it has answered, and wrongly
    return not any(
        status in str(cause.status()) for status in ("DEADLINE_EXCEEDED", "UNAVAILABLE", "RESOURCE_EXHAUSTED")
    )


def _add(one: list[int], other: list[int]) -> list[int]:
    return [a + b for a, b in zip(one, other, strict=True)]


def _minus(one: Counts, other: Counts) -> Counts:
    return {m: [max(0, a - b) for a, b in zip(n, other.get(m, NOTHING), strict=True)] for m, n in one.items()}
