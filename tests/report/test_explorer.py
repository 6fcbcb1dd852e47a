"""The explorer shows the records, all of them, and asks no other host for anything."""

import pytest
from tiny import made_up

from iekd import records
from iekd.config import RunConfig
from iekd.report import explorer


@pytest.fixture
def frame(runs):
    for seed, error in ((0, 4.0), (1, 6.0)):
        kd = RunConfig.create("class", method="kd", seed=seed)
        for config in (
            kd,
            kd.teacher_run(),
            kd.replace(method="ie-ft", explore="cka"),
            kd.replace(method="ft", ft_weight=50),
        ):
            made_up(config, error).save()
    return records.load()


def test_every_run_is_there_once_with_its_error_and_arms_have_their_statistics(frame):
    arms, runs = explorer.arms_and_runs(frame)
    assert sorted(arms["method"]) == ["FT", "IE-FT", "KD", "Teacher"]
    assert (
        sorted(runs["e"]) == 4 * [4] + 4 * [6]
        and set(arms["mean"]) == {5.0}
        and set(arms["n"]) == {2}
    )
    folders = dict(zip(arms["k"], arms["folder"], strict=True))
    assert sorted(f"{folders[run.k]}/seed{run.s}" for run in runs.itertuples()) == sorted(
        frame["path"]
    )


def test_an_arm_is_chosen_by_what_differs(frame):
    arms = explorer.arms_and_runs(frame)[0].set_index("method")
    assert arms.loc["IE-FT", "explore"] == "CKA" and arms.loc["KD", "explore"] == explorer.NONE
    assert dict(arms["weights"]) == {
        "FT": "50",
        **dict.fromkeys(["Teacher", "KD", "IE-FT"], explorer.USUAL),
    }
    assert not arms["other"].any()


def test_the_page_brings_all_it_needs(frame):
    page = explorer.explorer_html(frame, "beside.js")
    assert '<script src="beside.js">' in page and 'src="http' not in page and "<noscript>" in page
    assert page.count("</script>") == 2  # nothing in the data ends the script early
