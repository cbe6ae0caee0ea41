"""The command `rwguidance demo`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from ...support.files import expanded

if TYPE_CHECKING:
    from ...generation import Method
    from ..demo import Case, Task


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

    out = expanded(out)

    if digits:
        import torch

        torch.set_num_threads(1)  # the tensors are small: more threads only wait for each other
        run_digits(out, seed=seed, quick=quick)
        return
    for module in ("diffusers", "transformers", "PIL"):
        require(module, "the demo needs", "demo")
    task = _task(quick)
    settings = Settings(images=2, nats=0.5, target=8) if quick else Settings()
    bank = 8 if quick else 64
    run([_flow(bank), _turbo(bank)], task, out, settings, seed)


def _task(quick: bool) -> "Task":
    """The rewards and the prompts, all by name; they come before the large models."""

    from rwguidance import rewards
    from rwguidance.evaluation import embeddings, prompts

    from ..demo import Task

    try:
        texts = prompts.load("emoji-demo").prompts[: 2 if quick else None]
        proxy, gold, match = (rewards.load(f"emoji-{name}") for name in ("pick", "gold", "match"))
        return Task(texts, proxy, gold, match, embeddings.load("emoji-judge"))
    except LookupError as error:
        raise _needs_test_bed(error) from None


def _flow(bank: int) -> "Case":
    """Four steps: a bank guides them, and nothing is trained."""

    from ...generation import BestOfN, Importance

    guided = Importance(kl=1.0, bank=bank, leave_one_out=True)
    return _case("emoji-flow", 4, {"importance": guided, "best of 4": BestOfN(4)})


def _turbo(bank: int) -> "Case":
    """One step, which guidance can only displace: the noise is moved, or a network moves both."""

    from rwguidance import networks

    from ...generation import BestOfN, ChangeNetwork, NoiseGradient

    try:
        guide = ChangeNetwork(networks.load("emoji-turbo-change"))
    except LookupError as error:
        raise _needs_test_bed(error) from None
    moved = NoiseGradient(kl=1.0, bank=bank, size=0.65)
    methods = {"noise gradient": moved, "network": guide, "best of 4": BestOfN(4)}
    return _case("emoji-turbo", 1, methods)


def _case(name: str, steps: int, methods: "dict[str, Method]") -> "Case":
    import torch

    from rwguidance import backbones

    from ..demo import Case

    try:
        # Decoding is most of the work, and a third faster in this format of memory.
        # Those of the test bed have a path.
        found = cast("backbones.Backbone", backbones.load(name))
        backbone = found.to(memory_format=torch.channels_last)
    except LookupError as error:
        raise _needs_test_bed(error) from None
    return Case(name, backbone, steps, methods)


def _needs_test_bed(error: LookupError) -> ImportError:
    from ...support.registry import TESTBED

    return ImportError(
        f"the demo needs the models of the test bed ({error.args[0].partition(',')[0]}): "
        f"{TESTBED}; `rwguidance demo --digits` needs none"
    )
