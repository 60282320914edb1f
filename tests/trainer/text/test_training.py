"""Language models: streams, sizes, epochs that resume bit for bit, what is measured, and the hand-over."""

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from nas_api import names
from nas_api.child import ExitCode, FinalSettings, Result, StoreLocation, TrainerInput
from nas_api.experiment import DatasetSpec, LanguageSpec, OptimizerSpec, TextDataset
from nas_api.source import architecture_source
from nas_api.spaces.recurrent_cell import RecurrentCellArchitecture
from nas_api.stopping import Stopped, StopRule
from nas_store.folder import FolderStore
from nas_trainer import checkpoint
from nas_trainer.main import main
from nas_trainer.text.cell import RecurrentCell
from nas_trainer.text.data import Text, load_text
from nas_trainer.text.model import LanguageModel, fitting_width, model_parameters
from nas_trainer.text.training import BITS_PER_CHARACTER, PERPLEXITY, TextTraining, streams

CELL = RecurrentCellArchitecture.parse_short(
    "add/tanh add/sigmoid elem_mult/relu add/tanh elem_mult/tanh add/sigmoid add/tanh; inject add/tanh at 4; c=5"
)
SPEC = LanguageSpec(layers=2, parameters=3000, steps=5, dropout="0.25")
PLAIN = OptimizerSpec(learning_rate="0.1", momentum="0", weight_decay="0")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def text() -> Text:
    """A text in which each of eleven words has two that may follow it."""
    rng = random.Random(1)
    tokens = [0]
    while len(tokens) < 700:
        tokens.append((3 * tokens[-1] + rng.randrange(2)) % 11)
    return Text(torch.tensor(tokens[:500]), torch.tensor(tokens[500:]), tuple("abcdefghijk"))


def training(text: Text, **changes: Any) -> TextTraining:
    values: dict[str, Any] = {"spec": SPEC, "optimizer": PLAIN, "seed": 1, **changes}
    spec, optimizer, seed = (values.pop(name) for name in ("spec", "optimizer", "seed"))
    return TextTraining(CELL, text, spec, optimizer, 4, seed, torch.device("cpu"), **values)


def trained(text: Text, epochs: int = 3, **changes: Any) -> TextTraining:
    out = training(text, **changes)
    out.run(epochs, lambda: None)
    return out


# ---------------------------------------------------------------- streams and sizes


@pytest.mark.parametrize("count", [1, 3, 4, 9])
def test_streams_have_every_token_but_the_first_as_a_target_once(count: int) -> None:
    tokens = torch.arange(10) + 5
    read, following = streams(tokens, count)
    assert read.shape == following.shape == (math.ceil(9 / count), count)
    counted = following != -100
    assert sorted(following[counted].tolist()) == tokens[1:].tolist()
    assert torch.equal(following[counted], read[counted] + 1)
    # A stream goes down the rows.
    assert read[:, 0].tolist() == tokens[: len(read)].tolist()


def test_a_text_shorter_than_the_batch_has_fewer_streams() -> None:
    assert streams(torch.arange(4), 20)[0].shape == (1, 3)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_the_parameters_are_counted_rightly_and_fill_the_budget(layers: int, shared: bool) -> None:
    spec = LanguageSpec(layers=layers, parameters=2_000_000, shared_embeddings=shared)
    width = fitting_width(CELL, 1000, spec)
    model = LanguageModel(CELL, 1000, width, spec)
    assert sum(parameter.numel() for parameter in model.parameters()) == model_parameters(CELL, 1000, width, spec)
    assert width % 8 == 0
    assert model_parameters(CELL, 1000, width, spec) <= 2_000_000 < model_parameters(CELL, 1000, width + 8, spec)


def test_the_paper_s_medium_size() -> None:
    cell = RecurrentCellArchitecture.parse_short(
        "add/tanh add/tanh add/tanh add/tanh add/tanh add/tanh add/tanh add/tanh add/tanh add/tanh add/tanh add/tanh"
        " add/tanh add/tanh add/tanh; inject add/tanh at 0; c=1"
    )
    spec = LanguageSpec()
    size = model_parameters(cell, 10_000, fitting_width(cell, 10_000, spec), spec)
    assert 0.98 * 20_000_000 < size <= 20_000_000


# ---------------------------------------------------------------- training


@pytest.mark.slow
def test_it_learns_and_reports_the_perplexity_of_the_text_held_out(text: Text) -> None:
    steady = SPEC.model_copy(update={"steady_epochs": 30, "dropout": "0"})
    out = trained(text, epochs=30, spec=steady, optimizer=OptimizerSpec(learning_rate="0.03"))
    assert out.progress.epochs == len(out.progress.metrics) == 30
    # Two words may follow each: 2 is the least perplexity that can be had, 11 that of a guess.
    assert 2 < min(out.progress.metrics) < 3 < out.progress.metrics[0] < 12
    metrics = out.metrics(last=2)
    assert metrics["perplexity"] == pytest.approx(min(out.progress.metrics[-2:]))
    assert metrics["parameters"] == out.parameters <= 3000
    assert BITS_PER_CHARACTER not in metrics


def test_perplexity_is_that_of_one_pass_with_the_state_carried_on(text: Text) -> None:
    """Against the definition: the whole text at once, in double precision by the plain step."""
    out = trained(text, epochs=2, seed=5)
    read, following = streams(text.held_out, 4)
    model = out.network.double()
    loss = 0.0
    with torch.no_grad():
        state = [[torch.zeros(4, model.width, dtype=torch.float64) for _ in range(2)] for _ in range(2)]
        for step, words in enumerate(read):
            x = model.embedding[words]
            for layer, cell in enumerate(model.layers()):
                state[layer][:] = cell.step(x, *state[layer])
                x = state[layer][0]
            chances = torch.log_softmax(x @ model.softmax().T + model.bias, 1)
            for stream, word in enumerate(following[step].tolist()):
                loss -= 0.0 if word == -100 else chances[stream, word].item()
    assert out.progress.metrics[-1] == pytest.approx(math.exp(loss / (len(text.held_out) - 1)), rel=1e-5)


def test_bits_are_the_logarithm_of_the_perplexity(text: Text) -> None:
    bits = trained(text, metric=BITS_PER_CHARACTER)
    perplexity = trained(text, metric=PERPLEXITY)
    assert [2**each for each in bits.progress.metrics] == pytest.approx(perplexity.progress.metrics)
    metrics = bits.metrics(last=1)
    assert metrics[BITS_PER_CHARACTER] == bits.progress.metrics[-1]
    assert metrics[PERPLEXITY] == pytest.approx(perplexity.metrics(last=1)[PERPLEXITY])


def test_the_same_seed_gives_the_same_bits_and_another_others(text: Text) -> None:
    one, same, other = trained(text), trained(text), trained(text, seed=2)
    assert one.progress == same.progress != other.progress
    assert all(torch.equal(one.state()[name], tensor) for name, tensor in same.state().items())


def test_a_training_that_goes_on_ends_with_the_bits_of_one_never_stopped(text: Text) -> None:
    optimizer = OptimizerSpec(learning_rate="0.1")
    whole = trained(text, epochs=4, optimizer=optimizer)
    first = trained(text, epochs=2, optimizer=optimizer)
    second = training(text, seed=1, optimizer=optimizer)
    second.restore(first.state(), first.progress)
    second.run(4, lambda: None)
    assert second.progress == whole.progress
    assert all(torch.equal(second.state()[name], tensor) for name, tensor in whole.state().items())


def test_dropout_is_off_in_evaluation_and_on_in_training(text: Text) -> None:
    out = trained(text)
    assert out._measure() == out._measure()
    without = trained(text, spec=SPEC.model_copy(update={"dropout": "0"}))
    assert without.progress.losses != out.progress.losses
    words = text.train[:20].view(5, 4)
    start = out.network.start(4)
    plain = out.network(words, *start)[0]
    torch.testing.assert_close(plain, out.network(words, *start)[0])
    dropped = out.network(words, *start, out.network.masks(words, torch.Generator().manual_seed(1)))[0]
    assert not torch.allclose(plain, dropped)


def test_a_final_training_has_its_own_dropout_and_initial_weights(text: Text) -> None:
    settings = FinalSettings(dropout="0", initial_scale="0.04")
    found = training(text, final=settings).network
    values = torch.cat([parameter.detach().flatten() for parameter in found.parameters()])
    assert 0.035 < values.abs().max() <= 0.04 and abs(values.mean()) < 0.004
    words = text.train[:20].view(5, 4)
    generator = torch.Generator().manual_seed(1)
    assert found.masks(words, generator) == ()


@pytest.mark.parametrize("kind", ["input_dropout", "recurrent_dropout", "embedding_dropout"])
def test_what_a_mask_drops_it_drops_at_all_steps_of_a_window(
    text: Text, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Variational dropout (Gal and Ghahramani, 2016): the masks belong to a window, not to its steps."""
    network = training(text, seed=1, spec=SPEC.model_copy(update={"dropout": "0", kind: "0.5"})).network
    inputs, masks = [], []
    forward = RecurrentCell.forward

    def spy(self: RecurrentCell, x: Any, state: Any, memory: Any, mask: Any = None) -> Any:
        inputs.append(x)
        masks.append(mask)
        return forward(self, x, state, memory, mask)

    monkeypatch.setattr(RecurrentCell, "forward", spy)
    words = text.train[:20].view(5, 4).clone()
    words[3, 2] = words[0, 1]
    generator = torch.Generator().manual_seed(3)
    drawn = [(), network.masks(words, generator), network.masks(words, generator)]
    outputs = [network(words, *network.start(4), given)[0] for given in drawn]
    assert not torch.allclose(outputs[1], outputs[2]), "each window has its own"
    plain, dropped, mask = inputs[0], inputs[2], masks[2]
    if kind == "recurrent_dropout":
        assert torch.equal(plain, dropped)
        assert set(mask.unique().tolist()) == {0.0, 2.0} and mask.shape == (4, network.width)
        assert not torch.equal(masks[2], masks[3]), "each layer has its own"
        return
    assert mask is None
    factors = dropped / plain
    torch.testing.assert_close(factors.unique(), torch.tensor([0.0, 2.0]))
    if kind == "input_dropout":
        assert (factors == factors[:1]).all() and not (factors == factors[:, :1]).all()
    else:
        assert (factors == factors[..., :1]).all()
        assert torch.equal(factors[3, 2], factors[0, 1]), "a word is dropped wherever it is read"


def test_the_state_is_carried_from_window_to_window_and_starts_at_zero_with_each_epoch(
    text: Text, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, left = [], []
    forward = LanguageModel.forward

    def spy(self: LanguageModel, words: Any, states: Any, memories: Any, *rest: Any) -> Any:
        out = forward(self, words, states, memories, *rest)
        given.append((states, memories))
        left.append(out[1:])
        return out

    monkeypatch.setattr(LanguageModel, "forward", spy)
    trained(text, epochs=2)
    train, held_out = math.ceil(len(streams(text.train, 4)[0]) / 5), math.ceil(len(streams(text.held_out, 4)[0]) / 5)
    assert len(given) == 2 * (train + held_out)
    starts = {0, train, train + held_out, 2 * train + held_out}
    for number, (states, memories) in enumerate(given):
        if number in starts:
            assert not states.any() and not memories.any()
        else:
            assert torch.equal(states, left[number - 1][0]) and torch.equal(memories, left[number - 1][1])
            assert not states.requires_grad and not memories.requires_grad


def test_gradients_are_clipped_to_a_norm(text: Text, monkeypatch: pytest.MonkeyPatch) -> None:
    norms = []
    out = training(text, spec=SPEC.model_copy(update={"gradient_clip": "0.01"}))
    step = out._optimizer.step

    def spy() -> None:
        gradients = [each.grad for each in out.network.parameters() if each.grad is not None]
        norms.append(math.sqrt(sum(float(each.square().sum()) for each in gradients)))
        step()

    monkeypatch.setattr(out._optimizer, "step", spy)
    out.run(1, lambda: None)
    assert norms == pytest.approx([0.01] * len(norms), rel=1e-3)


def test_the_learning_rate_falls_after_the_steady_epochs(text: Text) -> None:
    spec = SPEC.model_copy(update={"steady_epochs": 2, "learning_rate_divisor": "2"})
    assert [training(text, spec=spec)._rate(epoch) for epoch in range(4)] == pytest.approx([0.1, 0.1, 0.05, 0.025])
    final = training(text, spec=spec, final=FinalSettings(decay_epoch=1))
    assert [final._rate(epoch) for epoch in range(3)] == pytest.approx([0.1, 0.01, 0.005])


@pytest.mark.slow
def test_a_training_that_diverges_says_so(text: Text) -> None:
    out = trained(text, epochs=20, optimizer=PLAIN.model_copy(update={"learning_rate": "999999999999"}))
    assert not all(map(math.isfinite, (*out.progress.losses, *out.progress.metrics)))


# ---------------------------------------------------------------- the process

Job = Callable[..., dict[str, str]]


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """Return a function that makes a trainer's environment over a small text; what is given replaces what is valid."""
    for part, sentences in (("train", 60), ("valid", 20), ("test", 20)):
        lines = [f"the {'cat' if n % 3 else 'dog'} sees a {'mouse' if n % 2 else 'bird'}" for n in range(sentences)]
        (tmp_path / f"ptb.{part}.txt").write_text("".join(f" {line} \n" for line in lines))

    def environment(**changes: Any) -> dict[str, str]:
        values: dict[str, Any] = {
            "experiment": "text",
            "sample": 3,
            "attempt": 1,
            "seed": 1,
            "metric": "perplexity",
            "architecture": CELL,
            "dataset": DatasetSpec(text=TextDataset(uri=str(tmp_path))),
            "epochs": 3,
            "reward_epochs": 1,
            "batch_size": 4,
            "optimizer": PLAIN,
            "language": SPEC,
            "store": StoreLocation(folder=str(tmp_path / "store")),
            **changes,
        }
        document = TrainerInput.model_validate(values)
        return {
            names.ENV_TRAINER_INPUT: document.model_dump_json(by_alias=True),
            "NAS_TERMINATION_LOG": str(tmp_path / "message"),
        }

    return environment


def result(tmp_path: Path, metric: str = "perplexity") -> Result:
    data = FolderStore(tmp_path / "store").get(names.result_key(3))
    assert data is not None
    return Result.parse(data, sample=3, digest=CELL.digest, metric=metric)


def test_a_child_leaves_one_result(job: Job, tmp_path: Path) -> None:
    assert main(job()) == ExitCode.OK
    child = result(tmp_path)
    assert child.metrics["perplexity"] == pytest.approx(child.history[-1])
    assert 1 < child.metrics["perplexity"] < 9
    assert len(child.history) == 3
    assert json.loads((tmp_path / "message").read_text())["metrics"] == child.metrics


def test_a_child_of_characters_reports_bits(job: Job, tmp_path: Path) -> None:
    dataset = DatasetSpec(text=TextDataset(uri=str(tmp_path), level="character"))
    assert main(job(dataset=dataset, metric=BITS_PER_CHARACTER)) == ExitCode.OK
    metrics = result(tmp_path, BITS_PER_CHARACTER).metrics
    assert 2 ** metrics[BITS_PER_CHARACTER] == pytest.approx(metrics["perplexity"])


def test_a_diverged_child_is_a_result(job: Job, tmp_path: Path) -> None:
    optimizer = PLAIN.model_copy(update={"learning_rate": "999999999999"})
    assert main(job(optimizer=optimizer, epochs=10)) == ExitCode.OK
    assert result(tmp_path).diverged("perplexity")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"metric": "accuracy"}, "measured by perplexity, not 'accuracy'"),
        ({"metric": "bitsPerCharacter"}, "a text of words is measured by perplexity"),
        ({"language": LanguageSpec(parameters=1000, layers=8)}, ""),
        (
            {"architecture": {"space": "custom", "choices": {}}},
            "a custom architecture cannot be trained on text",
        ),
    ],
)
def test_what_cannot_be_trained_is_invalid_input(job: Job, change: dict[str, Any], words: str, tmp_path: Path) -> None:
    if "language" in change:
        train = "".join(f"w{n}\n" for n in range(2000))
        (tmp_path / "ptb.train.txt").write_text(train)
        words = "are too few for 2,002 words"
    assert main(job(**change)) == ExitCode.INVALID_INPUT
    assert words in (tmp_path / "message").read_text()


def test_a_missing_text_has_its_own_code(job: Job, tmp_path: Path) -> None:
    environment = job()
    (tmp_path / "ptb.valid.txt").unlink()
    assert main(environment) == ExitCode.DATASET_UNAVAILABLE
    assert "ptb.valid.txt" in (tmp_path / "message").read_text()


def test_a_child_goes_on_from_its_checkpoint(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(job(epochs=4)) == ExitCode.OK
    whole = result(tmp_path)
    (tmp_path / "store" / names.result_key(3)).unlink()
    monkeypatch.setattr("nas_trainer.child._CHECKPOINT_SECONDS", 0.0)
    assert main(job(epochs=2)) == ExitCode.OK
    (tmp_path / "store" / names.result_key(3)).unlink()
    epochs: list[int] = []
    train = TextTraining._train_epoch

    def noted(each: TextTraining, epoch: int) -> float:
        epochs.append(epoch)
        return train(each, epoch)

    monkeypatch.setattr(TextTraining, "_train_epoch", noted)
    assert main(job(epochs=4, attempt=2)) == ExitCode.OK
    assert epochs == [2, 3]
    assert result(tmp_path).history == whole.history


def test_a_cell_with_too_high_a_perplexity_is_stopped(job: Job, tmp_path: Path) -> None:
    assert main(job(epochs=3, stop=StopRule(epoch=1, bound=1.5, goal="Minimize"))) == ExitCode.OK
    assert result(tmp_path).stopped == Stopped(epoch=1, of=3)
    assert result(tmp_path).metrics["perplexity"] == pytest.approx(result(tmp_path).history[0])
    assert len(result(tmp_path).history) == 1


def test_a_cell_with_a_low_perplexity_goes_on(job: Job, tmp_path: Path) -> None:
    assert main(job(epochs=3, stop=StopRule(epoch=1, bound=1e9, goal="Minimize"))) == ExitCode.OK
    assert result(tmp_path).stopped is None and len(result(tmp_path).history) == 3


def test_a_rule_does_not_keep_a_checkpoint_from_being_taken(job: Job) -> None:
    rule = StopRule(epoch=1, bound=1.5, goal="Minimize")
    one, other = (
        checkpoint.fingerprint(TrainerInput.model_validate_json(job(**changes)[names.ENV_TRAINER_INPUT]))
        for changes in ({}, {"stop": rule})
    )
    assert one == other


def test_another_model_s_checkpoint_is_not_taken(job: Job) -> None:
    one, other = (
        checkpoint.fingerprint(TrainerInput.model_validate_json(job(**changes)[names.ENV_TRAINER_INPUT]))
        for changes in ({}, {"language": SPEC.model_copy(update={"steps": 7})})
    )
    assert one != other


@pytest.mark.slow
def test_a_final_test_reads_the_test_set_once_and_hands_the_model_over(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = []
    measure = TextTraining._measure

    def counted(each: TextTraining) -> float:
        measured.append(1)
        return measure(each)

    monkeypatch.setattr(TextTraining, "_measure", counted)
    environment = job(final=FinalSettings(test=True))
    assert main(environment) == ExitCode.OK
    assert len(measured) == 1
    final = result(tmp_path)
    assert final.history == ()
    assert final.metrics["onnxDifference"] < 1e-4
    store = FolderStore(tmp_path / "store")
    weights_data, onnx = store.get(names.weights_key(3)), store.get(names.onnx_key(3))
    assert weights_data is not None and onnx is not None

    # Train on training and validation text, nothing of the test's: that is measured by the readable module.
    document = TrainerInput.model_validate_json(environment[names.ENV_TRAINER_INPUT])
    text = load_text(TextDataset(uri=str(tmp_path)), document.store, test=True)
    assert len(text.train) == 80 * 6 and len(text.held_out) == 20 * 6
    source = architecture_source(CELL)
    assert source is not None
    module: dict[str, Any] = {}
    exec(source, module)
    network = module["Network"].of(safetensors.torch.load(weights_data))
    read, following = streams(text.held_out, 4)
    with torch.no_grad():
        logits, state = network(read)
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), following.flatten(), ignore_index=-100)
    assert math.exp(loss.item()) == pytest.approx(final.metrics["perplexity"], rel=1e-5)

    vocabulary = json.loads(store.get(names.vocabulary_key(3)) or b"")
    assert tuple(vocabulary["tokens"]) == text.vocabulary
    tokens = module["numbers"]((tmp_path / "ptb.test.txt").read_text(), vocabulary)
    assert torch.equal(tokens, text.held_out)
    assert module["perplexity"](network, tokens, 4) == pytest.approx(final.metrics["perplexity"], rel=1e-5)
    assert json.loads(store.get(names.training_key(3)) or b"")["batchSize"] == 4

    import onnxruntime

    session = onnxruntime.InferenceSession(onnx, providers=["CPUExecutionProvider"])
    with torch.no_grad():
        wanted, (states, memories) = network(read[:1], state)
    found = session.run(None, {"words": read[0].numpy(), "states": state[0].numpy(), "memories": state[1].numpy()})
    for one, other in zip(found, (wanted[0], states, memories), strict=True):
        torch.testing.assert_close(torch.from_numpy(one), other, rtol=1e-4, atol=1e-4)


def test_the_network_that_won_is_tested_as_it_is(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TextTraining, "onnx", lambda self: (b"a model", 0.0))
    environment = job(sample=2, seed=5, final=FinalSettings(on_validation=False))
    (tmp_path / "ptb.test.txt").write_text(" a mouse sees the cat \n" * 20)
    assert main(environment) == ExitCode.OK
    store = FolderStore(tmp_path / "store")
    trained = Result.model_validate_json(store.get(names.result_key(2)) or b"")
    monkeypatch.setattr(TextTraining, "_train_epoch", None)  # all epochs are done
    settings = FinalSettings(test=True, on_validation=False, repeats=2)
    environment = job(seed=5, final=settings)
    (tmp_path / "ptb.test.txt").write_text(" a mouse sees the cat \n" * 20)
    assert main(environment) == ExitCode.OK
    assert result(tmp_path).history == trained.history
    assert result(tmp_path).metrics["perplexity"] != trained.metrics["perplexity"], "the other text"
