"""Makes the server kind (triton, attach, or one of the user) that a campaign names."""

from __future__ import annotations

from pathlib import Path

from campaign.protocols import ServerKind
from campaign.spec.models import ServerSpec
from campaign.util import plugins


def make_kind(spec: ServerSpec, base: Path) -> ServerKind:
    """The server kind that a spec names, with checked options.

    Raises:
        SpecError: There is no such kind, it is no `ServerKind`, or one of its options is wrong.
    """
    from campaign.spec.options import check_options

    cls = plugins.get(plugins.SERVERS, spec.kind, key=("servers", "kind"), base=base, of=ServerKind)
    check_options(cls.Options, spec.given, ("servers",), ServerSpec)
    kind: ServerKind = cls(spec, base)
    return kind
