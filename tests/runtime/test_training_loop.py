from utilgen_jax.runtime.training_loop import TrainingLoop


def test_no_more_than_two_steps_are_under_way():
    ready, told = [], []

    class Loss:
        def __init__(self, step):
            self.step = step

        def block_until_ready(self):
            ready.append(self.step)
            return self

    def update(state, step):
        assert ready == list(range(1, step - 1))
        return state, {"loss": Loss(step + 1)}

    TrainingLoop(lambda step, loss: told.append(step)).run(None, 6, update)
    assert told == [1, 2, 3, 4, 5, 6] and ready == [1, 2, 3, 4]
