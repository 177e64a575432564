"""A study that several configurations, drivers and workers meet in: nobody gets another one's results, and nothing is lost."""

import pytest

from gangpao.atomic import Busy, locked
from gangpao.sandbox.trials.driver import Driver
from gangpao.sandbox.trials.queue import enqueue, open_storage, open_study, results, work
from gangpao.sandbox.trials.search import Range, SearchConfig, search_name
from gangpao.sandbox.trials.trial import Lab, ensure, key_of


def with_config(lab, **changes):
    """The same sandbox under another configuration."""
    return Lab(lab.config.model_copy(update=changes), lab.out, lab.built, lab.stable, lab.decay)


@pytest.fixture
def study(tmp_path):
    return open_study(open_storage(f"sqlite:///{tmp_path / 'x.db'}"), "lr")


def states(study):
    return [t.state.name for t in study.get_trials(deepcopy=False)]


@pytest.mark.parametrize("change", [{"heldout_tokens": 1000}, {"seq_len": 64}, {"head_dim": 40}])
def test_a_worker_with_another_configuration_leaves_the_trial_to_the_right_one(lab, study, change):
    spec = lab.spec()
    enqueue(study, lab, [spec])
    with pytest.raises(ValueError, match=r"another configuration \(data, seq_len.*back in the queue"):
        work(with_config(lab, **change), study)
    assert not (lab.out / "trials").exists()
    assert states(study) == ["FAIL", "WAITING"]
    assert enqueue(study, lab, [spec]) == 0
    assert work(lab, study) == 1
    assert results(study)[key_of(lab, spec)].key == key_of(lab, spec)


@pytest.mark.parametrize("wrong", ["another configuration", "pruned by a search"])
def test_what_older_versions_took_for_the_result_is_not_believed(lab, study, wrong):
    spec = lab.spec()
    enqueue(study, lab, [spec])
    found = ensure(with_config(lab, heldout_tokens=1000) if wrong == "another configuration" else lab, spec)
    if wrong == "pruned by a search":
        found = found.model_copy(update={"state": "pruned", "bpb": None})
    with pytest.warns(UserWarning, match="Heartbeat"):
        taken = study.ask()
    taken.set_user_attr("result", found.model_dump(mode="json"))
    study.tell(taken, 1.0)
    assert results(study) == {}
    assert enqueue(study, lab, [spec]) == 1
    assert study.get_trials()[0].user_attrs["key"] == study.get_trials()[1].user_attrs["key"]


def test_a_waiting_spec_that_is_another_run_here_is_asked_for_anew(lab, study):
    """Two specs of two configurations may be the same run, and have one key."""
    spec = lab.spec()
    study.enqueue_trial({}, user_attrs={"key": key_of(lab, spec), "spec": lab.spec(lr=0.02).model_dump(mode="json")})
    assert enqueue(study, lab, [spec]) == 1
    assert states(study) == ["FAIL", "WAITING"]
    assert study.get_trials()[1].user_attrs["spec"]["lr"] == spec.lr


def test_what_waits_under_another_configuration_leaves_a_shared_study_unless_somebody_works_on_it(lab, study):
    other = with_config(lab, heldout_tokens=1000)
    enqueue(study, lab, [lab.spec(), lab.spec(lr=0.02)], revive=False)
    with pytest.warns(UserWarning, match="Heartbeat"):
        taken = study.ask()
    with pytest.raises(ValueError, match="1 trials wait there that were asked for with another configuration"):
        enqueue(study, other, [other.spec()], revive=False)
    assert states(study) == ["RUNNING", "WAITING"]
    study.tell(taken, 1.0)
    assert enqueue(study, other, [other.spec()], revive=False) == 1
    assert states(study) == ["COMPLETE", "FAIL", "WAITING"]


@pytest.fixture
def driver(config, tmp_path):
    search = SearchConfig(space={"lr": Range(low=0.005, high=0.02)}, trials=1, pruner="none")
    made = Driver(config.model_copy(update={"workers": 1, "search": search}), tmp_path / "sandbox")
    yield made
    made.close()


@pytest.mark.parametrize("name", ["lr", "search"])
def test_a_second_driver_leaves_the_trials_of_the_first_alone(driver, name):
    first = Driver(driver.config, driver.out)
    study = open_study(first.storage, search_name(first.lab, first.config.search) if name == "search" else name)
    spec, waits = first.lab.spec(), first.lab.spec(lr=0.02)
    enqueue(study, first.lab, [spec, waits] if name == "lr" else [])
    with pytest.warns(UserWarning, match="Heartbeat"):
        taken = study.ask()
    before = states(study)
    with locked(first.out), pytest.raises(Busy, match="another experiment is running here"):
        driver.submit(name, [spec]) if name == "lr" else driver.search()
    assert states(study) == before
    study.tell(taken, 1.0)  # the first one's worker can still say what came out
    first.close()


def test_what_is_known_is_shown_while_another_experiment_runs(driver, workers_here):
    spec, waits = driver.lab.spec(), driver.lab.spec(lr=0.02)
    found, searched = driver.submit("lr", [spec]), driver.search()
    study = open_study(driver.storage, "lr")
    enqueue(study, driver.lab, [spec, waits])
    with locked(driver.out):
        assert driver.submit("lr", [spec]) == found
        assert driver.search().trials == searched.trials
    assert states(study) == ["COMPLETE", "WAITING"]
