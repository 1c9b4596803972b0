"""The plan of a pool: what each place decides, and what it leaves alone."""

import dataclasses

import numpy as np
import pytest
import scipy.stats

from utilgen_jax.pool.plan import common_beginning, in_rounds, plan_pool

PROMPTS = [f"the digit {name}" for name in ("zero", "one", "two")]
CLASS_PROMPTS = [[prompt] for prompt in PROMPTS]


def test_plan_takes_classes_in_turn_and_a_shorter_plan_begins_a_longer_one():
    plan = plan_pool(CLASS_PROMPTS, 40, seed=3, round_number=0)
    assert [record.label for record in plan] == [0, 1, 2] * 40
    assert all(record.prompt == PROMPTS[record.label] and record.round == 0 for record in plan)
    assert plan[:30] == plan_pool(CLASS_PROMPTS, 10, seed=3, round_number=0)
    seeds = [record.seed for record in plan]
    assert len(set(seeds)) == 120 and 0 <= min(seeds) and max(seeds) < 2**31
    assert plan == plan_pool(CLASS_PROMPTS, 40, seed=3, round_number=0)
    for other in (plan_pool(CLASS_PROMPTS, 40, 4, 0), plan_pool(CLASS_PROMPTS, 40, 3, 1)):
        assert not set(seeds) & {record.seed for record in other}


def test_the_common_beginning_of_plans():
    plan = plan_pool(CLASS_PROMPTS, 4, seed=3, round_number=0)
    assert common_beginning(plan[:6], plan) == common_beginning(plan, plan[:6]) == 6
    assert common_beginning(plan, []) == 0 and common_beginning(plan, plan) == 12
    # What is measured later is no part of what is requested.
    measured = [dataclasses.replace(record, difficulty=0.5, weight=0.1, file_name="a.png") for record in plan]
    assert common_beginning(plan, measured) == 12
    changes = ({"prompt": "x"}, {"seed": 1}, {"label": 2}, {"requested_difficulty": 0.5}, {"round": 1})
    for place, change in enumerate(changes):
        other = [*plan[:place], dataclasses.replace(plan[place], **change), *plan[place + 1 :]]
        assert common_beginning(plan, other) == (place if plan[place] != other[place] else 12)
    # Classes of unlike numbers: a smaller pool is not the beginning, but what there is is found.
    uneven, more = (plan_pool(CLASS_PROMPTS, counts, 3, 0) for counts in ([2, 2, 1], [4, 4, 2]))
    assert common_beginning(uneven, more) == 5
    fewer, many = (plan_pool(CLASS_PROMPTS, counts, 3, 0) for counts in ([4, 1, 1], [8, 2, 2]))
    assert common_beginning(fewer, many) == 4


def test_a_plan_takes_a_classs_prompts_in_turn_and_asks_for_difficulties():
    prompts = (("a", "b"), ("c",))
    plan = plan_pool(prompts, 500, seed=3, round_number=0, difficulty=(0.5, 0.3))
    assert [record.prompt for record in plan[:6]] == ["a", "c", "b", "c", "a", "c"]
    asked = np.array([record.requested_difficulty for record in plan])
    assert asked.min() == 0 and asked.max() == 1
    inside = scipy.stats.norm(0.5, 0.3).cdf([0.2, 0.8])
    assert np.mean((asked > 0.2) & (asked < 0.8)) == pytest.approx(inside[1] - inside[0], abs=0.05)
    # What is asked of an image changes nothing else of it, and follows from its place.
    plain = [dataclasses.replace(record, requested_difficulty=None) for record in plan]
    assert plain == plan_pool(prompts, 500, seed=3, round_number=0)
    assert plan[:20] == plan_pool(prompts, 10, seed=3, round_number=0, difficulty=(0.5, 0.3))


def test_a_plan_may_have_another_number_for_each_class():
    counts = (2, 0, 5)
    plan = plan_pool(CLASS_PROMPTS, counts, seed=3, round_number=0)
    assert [record.label for record in plan] == [0, 2, 0, 2, 2, 2, 2]
    even = plan_pool(CLASS_PROMPTS, 5, seed=3, round_number=0)
    for label, count in enumerate(counts):
        assert [r for r in plan if r.label == label] == [r for r in even if r.label == label][:count]


def test_a_class_may_have_a_mean_difficulty_of_its_own():
    records = plan_pool(CLASS_PROMPTS, 300, seed=3, round_number=0, difficulty=([0.2, 0.5, 0.8], 0.05))
    for label, mean in enumerate((0.2, 0.5, 0.8)):
        drawn = [record.requested_difficulty for record in records if record.label == label]
        assert np.mean(drawn) == pytest.approx(mean, abs=0.02) and np.std(drawn) == pytest.approx(0.05, abs=0.01)


def test_a_pool_in_rounds_grows_to_the_whole_plan():
    plan = plan_pool(CLASS_PROMPTS, 4, seed=3, round_number=0)
    parts = in_rounds(plan, [0.25, 0.5, 1.0])
    assert [len(part) for part in parts] == [3, 6, 12]
    assert [record.round for record in parts[-1]] == [0] * 3 + [1] * 3 + [2] * 6
    assert all(part == parts[-1][: len(part)] for part in parts)
    assert [dataclasses.replace(record, round=0) for record in parts[-1]] == plan
    assert [len(part) for part in in_rounds(plan[:1], [0.25, 1.0])] == [1, 1]  # never an empty pool
