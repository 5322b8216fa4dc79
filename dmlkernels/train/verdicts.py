"""What each paper claims, beside what the numbers of the six rows say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

RECALL_NOISE = 0.01  # what R@1 of two equal runs of one seed may differ by
RANK_NOISE = 1.0  # the same of the effective rank; docs/methods.md has the deviations


def of_one_seed(results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A sentence for each claim, from the results of the rows by name."""
    return [_anti_collapse(results), _easy_positives(results), _expansion(results)]


def _gain(results: Mapping[str, Mapping[str, Any]], row: str, base: str, name: str) -> float:
    return results[row][name] - results[base][name]


def _points(gain: float) -> str:
    return f"{100 * gain:+.1f} points of R@1"


def _anti_collapse(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Claim: a higher effective rank."""
    base, row = "rll", "rll-anti-collapse"
    ranks = f"{results[base]['effective_rank']:.1f} without it, {results[row]['effective_rank']:.1f} with it"
    recall = _points(_gain(results, row, base, "recall_at_1_after"))
    gain = _gain(results, row, base, "effective_rank")
    if gain > RANK_NOISE:
        return f"Anti-Collapse: the higher effective rank that its paper claims shows: {ranks} ({recall})."
    return f"Anti-Collapse: the higher effective rank that its paper claims does not show here: {ranks} ({recall})."


def _easy_positives(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Claim: recall where a class has sub-clusters, which merged labels give it."""
    gain = _gain(results, "merged-rll-easy", "merged-rll", "recall_at_1_after")
    claim = "Easy positives: the recall that they are claimed to gain where a class has sub-clusters"
    if gain >= RECALL_NOISE:
        return f"{claim} shows with merged labels: {_points(gain)}."
    if gain > -RECALL_NOISE:
        return f"{claim} does not show here: {_points(gain)}, which one seed cannot tell from none."
    return f"{claim} does not show here, they lose: {_points(gain)}."


def _expansion(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Claim: recall; earlier pairs of runs on this data gave no reason to expect it here."""
    gain = _gain(results, "proxy-anchor-expansion", "proxy-anchor", "recall_at_1_after")
    if abs(gain) < RECALL_NOISE:
        return f"Spherical expansion: no gain was expected here, and none shows: {_points(gain)}."
    verb = "gains" if gain > 0 else "loses"
    return f"Spherical expansion: no gain was expected here; in this seed it {verb}: {_points(gain)}."
