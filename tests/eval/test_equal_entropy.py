"""Intervals that hold what they promise, and models compared where their entropies are equal."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
from rich.table import Table

from sddlm.eval.conventions import CONVENTIONS
from sddlm.eval.equal_entropy import BEST, Curves, Point, differences
from sddlm.eval.frontier import Frontier
from sddlm.eval.resampling import RESAMPLES, Interval, lowest_at, mean, ratio, resamples

TEXTS = 64
NEUTRAL = {"temperature": 1.0, "top_p": 1.0, "tail_cut": 0.0, "steps": 128}


def column(values):
    """Points by their figures alone, as if all resamples agreed."""
    return np.repeat(np.array(values, dtype=float)[:, None], 1 + RESAMPLES, axis=1)


def point(entropy, ppl, **setting):
    e, nll = column([entropy, np.log(ppl)])
    return Point(NEUTRAL | setting, e, nll, nfe=9.0, count=TEXTS, length=8.0)


def model(neutral, **along):
    """A model with points ``(value, entropy, ppl)`` along each knob beside the neutral one."""
    zero = point(*neutral)
    curves = {}
    for knob, places in along.items():
        points = [zero, *(point(e, ppl, **{knob: value}) for value, e, ppl in places)]
        curves[knob] = sorted(points, key=lambda p: p.setting[knob])
    return Curves(zero, curves)


REAL = replace(point(2.8, 4.0), setting={}, nfe=0.0)


def frontier(**models):
    """What is found of models against `REAL`."""
    return Frontier(
        judge="j", convention=CONVENTIONS["sddlm"], precision="float64", steps=128,
        real=REAL.figures(), differences=differences(REAL, models),
        models={name: curves.figures(REAL.entropy) for name, curves in models.items()},
    )  # fmt: skip


def frontier_rows(result):
    """Rows of the table."""
    table = Table("figure", "model", "reference")
    result.fill(table)
    return list(zip(*(column._cells for column in table.columns), strict=True))


# ---------------------------------------------------------------- resamples


def test_a_resample_is_as_many_texts_and_the_first_is_the_set_itself():
    times = resamples(TEXTS, stream=1)
    assert times.shape == (1 + RESAMPLES, TEXTS)
    assert (times.sum(1) == TEXTS).all()
    assert (times[0] == 1).all()
    assert times[1:].var() == pytest.approx(1 - 1 / TEXTS, rel=0.05)  # multinomial
    assert (times == resamples(TEXTS, stream=1)).all()
    assert (times[1:] != resamples(TEXTS, stream=0)[1:]).mean() > 0.4


def test_figures_of_the_set_and_of_a_resample_by_hand():
    times = np.array([[1.0, 1, 1], [2, 0, 1], [0, 3, 0]])
    values, tokens = np.array([1.0, 5, 3]), np.array([10.0, 0, 30])
    assert mean(times, values) == pytest.approx([3, 5 / 3, 5])
    assert ratio(times, values, tokens)[:2] == pytest.approx([9 / 40, 5 / 50])
    assert np.isnan(ratio(times, values, tokens)[2])  # no token at all


def test_an_interval_needs_nearly_all_resamples():
    figures = np.linspace(-1, 1, 1 + RESAMPLES)
    figures[0] = 0.5
    whole = Interval.of(figures)
    assert whole.value == 0.5
    assert (whole.low, whole.high) == pytest.approx((-0.95, 0.95), abs=0.01)
    figures[1:50] = np.nan
    assert Interval.of(figures).low == pytest.approx(-0.86, abs=0.01)
    figures[50:53] = np.nan
    assert Interval.of(figures) == Interval(0.5, None, None)
    figures[0] = np.nan
    assert Interval.of(figures) == Interval(None, None, None)
    grown = Interval.of(np.log(column([7.0])[0]), exponential=True)
    assert (grown.value, grown.low, grown.high) == pytest.approx((7, 7, 7))


class World:
    """Texts of known figures; all sets of a world share part of their chance, as samples do."""

    def __init__(self, seed):
        self.random = np.random.default_rng(seed)
        self.shared = self.random.normal(size=TEXTS)

    def point(self, entropy, nll, stream=1):
        """A set whose law has this entropy and this ratio of nats to tokens."""
        times = resamples(TEXTS, stream=stream)
        z = 0.8 * self.shared + 0.6 * self.random.normal(size=TEXTS)
        tokens = self.random.choice([20.0, 60.0], TEXTS)
        # longer texts are easier: the mean of the texts' own ratios would be nll
        nats = tokens * (nll + 0.1 + 0.3 * z) - 4 * (tokens - 20) / 20
        return Point(
            {}, mean(times, entropy + 0.2 * z), ratio(times, nats, tokens), 1.0, TEXTS, 8.0
        )


@pytest.mark.slow
def test_intervals_cover_the_truth():
    """Of 64 texts 94% do (measured over 2000 sets), for points, crossings and differences."""
    truth = {"entropy": 5.0, "nll": 3.0, "crossing": 3.25, "difference": 0.15}
    covered = dict.fromkeys(truth, 0)
    widths = []
    for seed in range(600):
        world = World(seed)
        a = [world.point(4.6, 2.6), world.point(5.0, 3.0), world.point(5.4, 4.0)]
        b = [world.point(4.7, 2.7), world.point(5.5, 3.5)]
        real = World(10_000 + seed).point(5.1, 1.0, stream=0)
        at, beside = (
            Curves(points[1], {"temperature": points}).nll_at(real.entropy)["temperature"]
            for points in (a, b)
        )
        sets = (a[1].entropy, a[1].nll, at, at - beside)
        for (name, true), figures in zip(truth.items(), sets, strict=True):
            found = Interval.of(figures)
            covered[name] += found.low <= true <= found.high
        widths.append([np.std(x[1:]) for x in (at - beside, at, beside)])
    assert all(0.92 <= n / 600 <= 0.97 for n in covered.values()), covered
    difference, one, other = np.mean(widths, axis=0)
    assert difference < 0.8 * np.hypot(one, other)  # what both have in common falls out


# ---------------------------------------------------------------- crossings


def crossing(target, entropy, nll):
    return lowest_at(column([target])[0], column(entropy), column(nll))[0]


@pytest.mark.parametrize(
    ("target", "expected"), [(1.0, 10.0), (1.5, 15.0), (2.0, 20.0), (2.25, 22.5), (3.0, 30.0)]
)
def test_between_two_points_the_line_is_straight(target, expected):
    entropy, nll = [1, 2, 3], [10, 20, 30]
    assert crossing(target, entropy, nll) == pytest.approx(expected)
    assert crossing(target, entropy[::-1], nll[::-1]) == pytest.approx(expected)


@pytest.mark.parametrize("target", [0.999, 3.001])
def test_a_line_is_never_prolonged(target):
    assert np.isnan(crossing(target, [1, 2, 3], [10, 20, 30]))


def test_of_several_crossings_the_lowest_counts():
    # up, back and up again: at 1.75 the line passes three times
    entropy, nll = [1, 2, 1.5, 3], [10, 20, 12, 30]
    passes = [17.5, 16, 12 + 18 / 6]
    assert crossing(1.75, entropy, nll) == pytest.approx(min(passes))
    assert crossing(2.0, [1, 2, 2], [10, 20, 14]) == 14  # a step at the end
    assert crossing(2.0, [2, 2, 1], [14, 20, 10]) == 14
    assert np.isnan(crossing(2.0, [2], [5]))  # one point is no line


def test_a_crossing_is_what_mixed_samples_have():
    """A share w of one setting's samples and the rest of the other's lie on the segment."""
    random = np.random.default_rng(0)
    sharp, blunt = ({"e": random.normal(m, 0.1, 400), "nats": random.normal(9 * m, 2, 400)}
                    for m in (4, 5))  # fmt: skip
    mixed = {k: np.concatenate([sharp[k][:100], blunt[k][:300]]) for k in ("e", "nats")}
    ends = [
        {k: np.concatenate([one[k][:n]]).mean() for k in ("e", "nats")}
        for one, n in ((sharp, 100), (blunt, 300))
    ]
    entropy = [one["e"] for one in ends]
    nll = [one["nats"] / 10 for one in ends]  # 10 tokens each
    found = crossing(mixed["e"].mean(), entropy, nll)
    assert found == pytest.approx(mixed["nats"].sum() / 4000, rel=1e-12)


def test_each_resample_is_crossed_by_itself():
    entropy, nll = column([1, 3]), column([10, 30])
    entropy[1, 5] = 2.0
    nll[0, 6] = 0.0
    found = lowest_at(column([2.5])[0], entropy, nll)
    assert found[[0, 6]] == pytest.approx([25, 22.5])
    assert np.isnan(found[5])
    moved = column([2.5])[0]
    moved[7] = 2.0
    assert lowest_at(moved, entropy, nll)[7] == 20


# ---------------------------------------------------------------- the report


def plain():
    return model(
        (2.9, 8.0),
        temperature=[(0.8, 2.7, 4.0), (1.2, 3.0, 20.0)],
        tail_cut=[(1.0, 2.6, 2.0)],
        top_p=[(0.9, 2.85, 6.0)],
        steps=[(16, 2.7, 1.0)],
    )


def sharp():
    return model((2.6, 3.0), temperature=[(1.2, 3.0, 9.0)], tail_cut=[(1.0, 2.4, 2.0)])


def test_the_perplexity_at_the_entropy_of_real_text():
    found = plain().figures(REAL.entropy)
    at = {knob: one.ppl.value for knob, one in found.ppl_at_real_entropy.items()}
    by_cut = 8 ** (2 / 3) * 2 ** (1 / 3)  # two thirds of the way from cut 1 to neutral, in logs
    assert at == {
        "temperature": pytest.approx((8 * 4) ** 0.5),
        "top_p": None,
        "tail_cut": pytest.approx(by_cut),
        BEST: pytest.approx(by_cut),  # fewer steps are no sharpness
    }
    assert found.best_knob == "tail_cut"
    missing = found.ppl_at_real_entropy["top_p"]
    assert missing.reached == 0
    assert missing.reason == (
        "entropy 2.8 is not reached: the settings give 2.85 to 2.9; widen the sweep"
    )
    assert found.ppl_at_real_entropy[BEST].reason is None
    assert [p.setting["steps"] for p in found.curves["steps"]] == [16, 128]
    assert found.neutral.gen_ppl.value == pytest.approx(8)
    assert found.neutral in found.curves["temperature"]


def test_each_resample_chooses_its_best_knob():
    one = plain()
    lower = one.along["temperature"][0]
    lower.nll[1 : 1 + RESAMPLES // 2] = 0.0  # in half of the resamples temperature is better
    best = one.nll_at(REAL.entropy)[BEST]
    assert (best[1 : 1 + RESAMPLES // 2] < best[0]).all()
    assert (best[1 + RESAMPLES // 2 :] == best[0]).all()


def test_an_entropy_that_only_some_resamples_reach():
    one = plain()
    one.along["tail_cut"][1].entropy[1:200] = 2.95  # the cut one: out of reach there
    assert one.along["tail_cut"][1].setting["tail_cut"] == 1
    found = one.figures(REAL.entropy).ppl_at_real_entropy["tail_cut"]
    assert found.ppl.value is not None
    assert found.ppl.low is None
    assert found.reached == pytest.approx(1 - 199 / RESAMPLES)
    assert "20% of the resamples do not reach" in found.reason


def test_models_are_compared_where_their_entropies_are_equal():
    found = differences(REAL, {"plain": plain(), "sharp": sharp(), "third": sharp()})
    assert {(one.model, one.against) for one in found} == {
        ("plain", "sharp"), ("plain", "third"),
    }  # fmt: skip
    at = {(one.at, one.knob): one.nats.value for one in found[: len(found) // 2]}
    by_temperature = 0.5 * np.log(8 * 4) - 0.5 * np.log(3 * 9)
    assert at["real text", "temperature"] == pytest.approx(by_temperature)
    assert at["real text", "tail_cut"] is None
    assert ("real text", "top_p") not in at
    best = np.log(8) * 2 / 3 + np.log(2) / 3 - 0.5 * np.log(27)
    assert at["real text", BEST] == pytest.approx(best)
    # the sharp one as it is, against the plain one sharpened to the same entropy
    assert at["sharp, neutral", "tail_cut"] == pytest.approx(np.log(2 / 3))
    assert at["sharp, neutral", "temperature"] is None
    assert at["sharp, neutral", BEST] == pytest.approx(np.log(2 / 3))
    # and the other way about: the sign stays
    blunted = np.log(3) + 0.75 * np.log(3)
    assert at["plain, neutral", "temperature"] == pytest.approx(np.log(8) - blunted)


def test_a_model_against_itself_differs_in_no_resample():
    world = World(0)
    points = [world.point(4.6, 2.6), world.point(5.0, 3.0), world.point(5.4, 3.4)]
    twin = Curves(points[1], {"temperature": points})
    found = differences(points[1], {"one": twin, "other": twin})
    assert {one.at for one in found} == {"real text", "one, neutral", "other, neutral"}
    for one in found:
        assert asdict(one.nats) == pytest.approx({"value": 0, "low": 0, "high": 0}, abs=1e-12)


def test_who_is_out_of_reach_is_named():
    found = differences(REAL, {"plain": plain(), "sharp": sharp()})
    reasons = {(one.at, one.knob): one.reason for one in found}
    assert "the settings give 2.4 to 2.6" in reasons["real text", "tail_cut"]
    assert "entropy 2.6 is not reached" in reasons["sharp, neutral", "temperature"]
    assert "the settings give 2.7 to 3" in reasons["sharp, neutral", "temperature"]
    assert reasons["real text", "temperature"] is None


def test_the_table_and_the_file():
    result = frontier(plain=plain(), sharp=sharp())
    record = result.as_dict()
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    cut = record["models"]["plain"]["curves"]["tail_cut"][-1]
    assert (cut["tail_cut"], cut["gen_ppl"]["value"]) == (1.0, pytest.approx(2))
    rows = frontier_rows(result)
    assert rows[0] == (
        "plain: perplexity at real entropy",
        "5.04 [5.04, 5.04]",
        "by tail_cut; real 4 [4, 4], entropy 2.800",
    )
    assert [row[0] for row in rows[1:]] == [
        "sharp: perplexity at real entropy", *["plain against sharp"] * 3,
        "plain: steps 16", "plain: steps 128",
    ]  # fmt: skip
    assert rows[3][1:] == (
        "0.6667 [0.6667, 0.6667]",
        "times its perplexity, at the entropy of sharp, neutral",
    )
    far = model((1.0, 2.0), temperature=[(1.2, 1.5, 3.0)])
    _, value, why = frontier_rows(frontier(far=far))[0]
    assert (value, why.split(":")[0]) == ("-", "entropy 2.8 is not reached")


def test_a_model_without_sharpness_has_no_row():
    only_steps = model((2.9, 8.0), steps=[(16, 2.7, 1.0)])
    result = frontier(a=only_steps, b=plain())
    assert result.models["a"].ppl_at_real_entropy == {}
    assert result.models["a"].best_knob is None
    assert [row[0] for row in frontier_rows(result)] == [
        "b: perplexity at real entropy", "a against b",
        *[f"{name}: steps {steps}" for name in "ab" for steps in (16, 128)],
    ]  # fmt: skip
