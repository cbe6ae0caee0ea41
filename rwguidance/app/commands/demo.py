"""The command `rwguidance demo`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

if TYPE_CHECKING:
    from ..demo import Case, Scorer


def demo(
    out: Annotated[Path, typer.Option(help="Folder for pictures and tables.")] = Path("out/demo"),
    seed: Annotated[int, typer.Option(help="Seed of everything.", min=0)] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="A small run, in seconds.")] = False,
    digits: Annotated[
        bool,
        typer.Option(
            "--digits", help="An exact model of digits and a mixture in the plane instead."
        ),
    ] = False,
) -> None:
    """Align small text-to-image models with a learned reward, and show what it did.

    The models are those of the test bed, rwguidance-testbed; --digits needs none.
    """

    from ...support.outside import require
    from ..demo import Settings, run, run_digits

    if digits:
        import torch

        torch.set_num_threads(1)  # the tensors are small: more threads only wait for each other
        run_digits(out, seed=seed, quick=quick)
        return
    for module in ("diffusers", "transformers", "PIL"):
        require(module, "the demo needs", "demo")
    scorer = _scorer(quick)
    cases = [_case("emoji-flow", 4), _case("emoji-turbo", 1, "emoji-turbo-guide")]
    settings = Settings(images=2, bank=8, nats=0.5) if quick else Settings()
    run(cases, scorer, out, settings, seed)


def _scorer(quick: bool) -> "Scorer":
    """The rewards and the prompts, all by name; they come before the large models."""

    from rwguidance import rewards
    from rwguidance.evaluation import prompts

    from ..demo import Scorer

    try:
        texts = prompts.load("emoji-demo").prompts
        proxy, gold, match = (rewards.load(f"emoji-{name}") for name in ("pick", "gold", "match"))
    except LookupError as error:
        raise _needs_test_bed(error) from None
    return Scorer(proxy, gold, match, texts[: 2 if quick else None])


def _case(name: str, steps: int, network: str | None = None) -> "Case":
    import torch

    from rwguidance import backbones, networks

    from ..demo import Case

    guide: dict[str, Any] = {}
    try:
        # Decoding is most of the work, and a third faster so.
        # Those of the test bed have a path.
        found = cast("backbones.Backbone", backbones.load(name))
        backbone = found.to(memory_format=torch.channels_last)
        if network is not None:
            guide = {"network": networks.load(network), "beta": networks.published(network).beta}
    except LookupError as error:
        raise _needs_test_bed(error) from None
    return Case(name, backbone, steps, **guide)


def _needs_test_bed(error: LookupError) -> ImportError:
    from ...support.registry import TESTBED

    return ImportError(
        f"the demo needs the models of the test bed ({error.args[0].partition(',')[0]}): "
        f"{TESTBED}; `rwguidance demo --digits` needs none"
    )
