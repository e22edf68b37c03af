"""The page of a live advice beside its full columns."""

from __future__ import annotations

from typing import Any

from smallbatch.config.base_lr import format_base_lr
from smallbatch.markdown import table


def page(name: str, command: str, advice: dict[str, Any], found: dict[str, Any]) -> str:
    """The page's text.

    Args:
        name: Of the case.
        command: As it was typed.
        advice: The content of `advice.json`.
        found: What `compare` returned.
    """
    rate = "η" if advice["optimizer"] == "adamw" else "η̃"
    points, seeds, images = (
        100 * found[key] for key in ("regret", "regret_seeds", "regret_images")
    )
    regret = (
        f"Regret on the test images: {points:.1f} points, ± {seeds:.1f} by the seeds and up to "
        f"± {images:.1f} by the size of the test set (standard errors), against the choice of the "
        "full columns."
    )
    if found["advised"] == found["grid"]:
        regret = "No regret: the full columns choose the advised cell."
    regret += (
        f" A cell drawn at random from them has {100 * found['random_regret']:.1f} points on "
        "average."
    )
    choices = [
        (words, str(it["batch_size"]), format_base_lr(it["base_lr"]), _percent(it["validation"]),
         _percent(it["test"]))
        for words, it in (
            ("advised", found["advised"]),
            ("chosen by the full columns, on validation", found["grid"]),
            ("best on the test images, in hindsight", found["best_on_test"]),
        )
    ]  # fmt: skip
    broke = found["broke_below_the_edge"]
    edges = (
        (
            "No cell up to where the advice calls training stable broke in whole trainings"
            f"{'' if found['edges_known'] else '; it met no edge, so this says little'}."
        )
        if not broke
        else "At or below the edge of the advice broke: "
        + ", ".join(
            f"m = {it['batch_size']} at {format_base_lr(it['base_lr'])} ({it['survived']} of 3 "
            "survived)"
            for it in broke
        )
        + "."
    )
    cells = [
        (str(it["batch_size"]), format_base_lr(it["base_lr"]), f"{it['survived']} of 3",
         _percent(_mean(it["validation"])), _percent(_mean(it["test"])))
        for it in found["cells"]
    ]  # fmt: skip
    return "\n".join([
        f"# Advice on {name}, and the full columns afterwards", "",
        table(("", ""), [
            ("command", command),
            ("processor", advice["processor"]),
            ("budget", f"{advice['budget']}; the command took {found['command_seconds']:.0f} s"),
            ("a training", (f"{advice['epochs']} epochs of {advice['n_train']:,} images, "
                           f"{advice['n_validation']:,} for choosing, {advice['n_test']:,} for "
                           "testing")),
            ("images", (f"{advice['images']:,} by the advice; the full columns are planned for "
                       f"{found['grid_images']:,}")),
        ]), "",
        ("[advice.html](advice.html) is the answer as the user gets it, [advice.json](advice.json) "
        "its numbers, [full.json](full.json) the full columns: learning rates an octave apart "
        "around what the advice found best at each batch size, whole trainings with the seeds of "
        "its race."), "",
        table(("cell", "m", rate, "validation", "test"), choices), "",
        (f"{regret} The seeds of the advised cell deviate by {100 * found['deviation']:.1f} "
        f"points. By test accuracy it is number {found['place']} of {found['of']} cells. "
        f"The choice of the full columns is {'among' if found['tied_hold'] else 'not among'} "
        f"those that the advice calls tied. {edges}"), "",
        "## The full columns", "",
        table(("m", rate, "survived", "validation", "test"), cells), "",
    ])  # fmt: skip


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None
