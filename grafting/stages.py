"""The paper's method: in which order which scions are distilled (docs/method.md, sections 4 and 5).

Stage 1, block grafting (paper, section 3.2): B0, B1, ... one after the other, each alone in an otherwise unchanged
teacher. Each learns to reproduce the teacher's logits through the blocks behind it.

Stage 2, progressive net grafting (paper, section 3.3): L=2 trains B0 and B1 together, from stage 1's weights; L=3 goes
on from L=2's weights with stage 1's B2 behind them; and so on, until the scions replace all blocks that are grafted.

Every phase ends with the weights of its last epoch. The student is the last phase's at its best test accuracy.
"""

from dataclasses import dataclass, replace

from grafting.method import Method, Training
from grafting.recipes import Phase, Recipe


def front(phases: tuple[Phase, ...]) -> tuple[Phase, ...]:
    """The paper's: B0 and B1 are joined first, then one more scion at a time."""
    return phases


def straight(phases: tuple[Phase, ...]) -> tuple[Phase, ...]:
    """All scions at once, for the epochs of all phases; the best is chosen among as many as in the last phase."""
    return tuple(replace(last, epochs=sum(phase.epochs for phase in phases)) for last in phases[-1:])


def back(phases: tuple[Phase, ...]) -> tuple[Phase, ...]:
    """From the back: the last two scions are joined first, then one more in front of them at a time."""
    end = phases[-1].span[1] if phases else 0
    turned = (replace(p, name=f"{p.name}-back", span=(end - p.span[1] + p.span[0], end)) for p in phases[:-1])
    return (*turned, *phases[-1:])


JOINS = {join.__name__: join for join in (front, straight, back)}


@dataclass(frozen=True)
class Grafting(Method):
    """optimize_span: the order in which stage 2 joins the scions, one of JOINS."""

    optimize_span: str = "front"

    @property
    def name(self) -> str:
        return "grafting" if self.optimize_span == "front" else f"grafting-{self.optimize_span}"

    def phases(self, recipe: Recipe) -> tuple[Phase, ...]:
        return recipe.stage1 + JOINS[self.optimize_span](recipe.stage2)

    def train(self, recipe: Recipe, training: Training) -> None:
        for phase, scion in zip(recipe.stage1, training.networks, strict=True):
            training.distill(phase, [scion])
        training.keep_stage1()
        for phase in JOINS[self.optimize_span](recipe.stage2):
            i, j = (block - recipe.blocks[0] for block in phase.span)
            training.distill(phase, training.networks[i:j])


GRAFTING = Grafting()
