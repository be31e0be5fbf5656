"""How strengths change, in the injectors of every engine."""

import threading

import pytest

from rotalabs_steer import ActivationInjector, MultiVectorInjector, SteeringVectorSet
from rotalabs_steer.errors import OptionError, VectorError
from rotalabs_steer.steering.held_strengths import StrengthByBehavior
from tiny import make_vector


class Engine(StrengthByBehavior):
    """An engine that can be steered at strengths up to 1."""

    def __init__(self, names):
        self._strengths = dict.fromkeys(names, 0.0)
        self.acting = {}

    def _put_in_force(self):
        present = self._strengths
        if max(present.values()) > 1:
            raise VectorError("too much")
        self.acting = dict(present)


def test_a_strength_that_cannot_act_changes_nothing():
    engine = Engine(["calm", "wit"])
    engine.set_strength("calm", 1.0)
    with pytest.raises(VectorError, match="too much"):
        engine.set_strength("calm", 2.0)
    with pytest.raises(OptionError, match="is not a finite number"):
        engine.set_strength("wit", "much")
    assert engine.strengths == engine.acting == {"calm": 1.0, "wit": 0.0}


def test_all_changes_of_several_threads_act():
    names = [str(number) for number in range(50)]
    engine = Engine(names)
    threads = [threading.Thread(target=engine.set_strength, args=(name, 1.0)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert engine.strengths == engine.acting == dict.fromkeys(names, 1.0)


def test_what_is_not_a_strength_or_a_behavior_changes_nothing(llama):
    vector = make_vector(llama, behavior="calm")
    one = ActivationInjector(llama, vector, 0.5)
    several = MultiVectorInjector(llama, {"calm": SteeringVectorSet("calm", [vector])})
    with pytest.raises(OptionError, match="is not a finite number"):
        one.strength = "much"
    with pytest.raises(KeyError, match=r"No vectors for behaviour 'wit'; there are \['calm'\]"):
        several.set_strength("wit", 1.0)
    assert one.strength == 0.5
    assert several.strengths == {"calm": 1.0}
