"""Natural data as streams with the state carried over, against a plain loop over the text; its baselines, counted one by one."""

import hashlib
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from commands import train
from kernel_oracle import STEPS
from oracle import make_config, random_parameters
from test_state import rest_of, rows

from rnn_lab import results
from rnn_lab.activations import ACTIVATIONS
from rnn_lab.bptt import Net
from rnn_lab.cells import Elman
from rnn_lab.corpora import Corpus, chorales
from rnn_lab.corpora.text import of_text
from rnn_lab.evaluation import whole
from rnn_lab.losses import bernoulli_cross_entropy
from rnn_lab.tasks import Characters, Music, of_corpus
from rnn_lab.tasks.streams import STREAMS
from rnn_lab.training import Training

WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "and", "then", "naps", "while"]
KERNELS = ["reference", pytest.param("numba", marks=pytest.mark.slow)]


def some_text(characters: int, seed: int = 0) -> str:
    rng = np.random.default_rng(seed)
    return " ".join(rng.choice(WORDS, characters // 3))[:characters]


@pytest.fixture
def path(tmp_path: Path) -> str:
    file = tmp_path / "text.txt"
    file.write_text(some_text(2000))
    return str(file)


def values(path: str, **others) -> dict:
    common = {
        "task.name": "characters",
        "task.path": path,
        "task.length": 7,
        "training.batch_size": 3,
        "model.hidden": 10,
    }
    common |= {"training.dtype": "float64", "optimizer.lr": 0.5, "training.updates": 6, "training.log_every": 1}
    common |= {"training.kernel": "reference"}
    return common | {key.replace("__", "."): value for key, value in others.items()}


def rolls(pieces: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(20, 40, pieces)
    return {f"bwv{n}.1": (rng.random((length, 88)) < 0.1).astype(np.uint8) for n, length in enumerate(lengths)}


# -------------------- what is read


@pytest.mark.parametrize("ahead", [1, 5])
@pytest.mark.parametrize("start", [0, 450, 899])
def test_mini_batches_one_after_another_are_the_text_in_a_circle(start, ahead):
    """Of each stream; and in an epoch every place is read once."""
    task = Characters(of_text(some_text(1000), ""), 10, ahead)
    n, batch, text = 900, 9, task.corpus.train
    x, y = task.read(start, 0, 25, batch)
    assert x.shape == y.shape == (25, 10, batch)
    for stream in range(batch):
        places = (start + 100 * stream + np.arange(250)) % n
        assert (x[:, :, stream].ravel() == text[places]).all()
        assert (y[:, :, stream].ravel() == text[(places + ahead) % n]).all()
    assert [task.epoch(step, batch) for step in (0, 9, 10, 19, 20)] == [1, 1, 2, 2, 3]
    assert sorted(x[:10].ravel()) == sorted(text)


def test_blocks_and_seeds(path):
    """Mini-batches go on across the blocks in which they are read; another seed begins elsewhere, the same one at the same place."""
    first, again, other = (Training([make_config(values(path, seed=seed))]) for seed in (0, 0, 1))
    seen = []
    for training in (first, again, other):
        x = []
        for _ in range(40):
            training.batches.advance()
            x.append(training.batches.tensors()[0].argmax(-1)[0].numpy().copy())
        seen.append(np.concatenate(x))  # (time, stream)
    assert (seen[0] == seen[1]).all()
    assert (seen[0] != seen[2]).any()
    text = "".join(map(chr, np.tile(first.task.corpus.train, 2)))
    for stream in range(3):
        assert "".join(map(chr, seen[0][:, stream])) in text


def test_a_text_is_cut_into_three_and_its_vocabulary_is_that_of_the_first():
    text = "ac" * 450 + "acz" * 17 + "bca" * 16 + "c"  # b would stand between the two, z behind them
    corpus = of_text(text, "")
    assert [len(part) for part in corpus[:3]] == [900, 50, 50]
    assert corpus.size == 3
    shown = "".join("ac?"[symbol] for part in corpus[:3] for symbol in part)
    assert shown == text.replace("z", "?").replace("b", "?")


def test_of_many_characters_the_most_frequent_255_are_known():
    often, rare = "".join(map(chr, range(0x4E00, 0x4E00 + 255))), "".join(map(chr, range(0x5E00, 0x5E00 + 100)))
    corpus = of_text(10 * (2 * often + rare), "")
    assert corpus.size == 256
    assert (corpus.train == 255).mean() == pytest.approx(100 / 610, abs=0.01)


def test_pieces_go_to_a_part_by_the_last_digit_of_their_number_and_end_in_silence():
    pieces = rolls(40) | {"bwv248.64-6": np.ones((3, 88), np.uint8)}
    corpus = chorales.of_pieces(pieces)
    lengths = {
        digit: sum(len(r) + 1 for n, r in pieces.items() if chorales.bwv(n) % 10 == digit) for digit in range(10)
    }
    assert (len(corpus.valid), len(corpus.test)) == (lengths[8], lengths[9])
    assert len(corpus.train) == sum(lengths.values()) - lengths[8] - lengths[9]
    assert (corpus.valid[-4:-1] == 1).all()
    assert (corpus.test[len(pieces["bwv9.1"])] == 0).all()


def test_a_score_is_sampled_at_eighth_notes():
    """A quarter from 0, an eighth from 1, a triplet eighth that begins off the grid, and a chord that is held to the end."""
    stream = pytest.importorskip("music21").stream
    from music21 import chord, note

    part = stream.Part()
    for pitch, offset, length in (("C4", 0, 1.0), ("D4", 1, 0.5), ("E4", 5 / 3, 1 / 6), ("F4", 4 / 3, 1 / 3)):
        part.insert(offset, note.Note(pitch, quarterLength=length))
    part.insert(2, chord.Chord(["A0", "C8"], quarterLength=1.5))
    frames = chorales.roll(stream.Score([part]))
    assert frames.shape == (7, 88)
    expected = [{60}, {60}, {62}, {65}, {21, 108}, {21, 108}, {21, 108}]  # F4 sounds from 1.33 to 1.67, at 1.5
    assert [set(np.flatnonzero(frame) + 21) for frame in frames] == expected


# -------------------- the state


def plain(config, theta, run: int, updates: int):
    """A run as a loop over its text: parameters after some updates, by autograd and SGD; and each chunk's loss."""
    cell = config.model.name
    text = Path(config.task.path).read_text()
    text = text[: int(0.9 * len(text))]
    symbols = np.array([sorted(set(text)).index(c) for c in text])
    n, T, B, H = len(text), config.task.length, config.training.batch_size, config.model.hidden
    start = np.random.default_rng(np.random.SeedSequence(config.seed).spawn(3)[1]).integers(n)
    weights = [
        w[run].clone().requires_grad_() for w in (*(w for layer in theta.layers for w in layer), theta.V, theta.c)
    ]
    layers = config.model.layers
    states = [(torch.zeros(B, H).double(), torch.zeros(B, H).double()) for _ in range(layers)]
    losses, place = [], start + np.arange(B) * n // B
    for _ in range(updates):
        loss = torch.zeros(()).double()
        for t in range(T):
            z = F.one_hot(torch.from_numpy(symbols[(place + t) % n]), weights[0].shape[0]).double()
            for k in range(layers):
                U, W, b = weights[3 * k : 3 * k + 3]
                states[k] = STEPS[cell](z @ U + b, *states[k], W, "tanh", 1.0)
                z = states[k][0]
            y = torch.from_numpy(symbols[(place + t + config.task.ahead) % n])
            loss = loss + F.cross_entropy(z @ weights[-2] + weights[-1], y) / T
        gradients = torch.autograd.grad(loss, weights)
        weights = [
            (w - config.optimizer.lr * g).detach().requires_grad_() for w, g in zip(weights, gradients, strict=True)
        ]
        states = [tuple(s.detach() for s in state) for state in states]
        losses.append(loss.item())
        place = place + T
    return [w.detach().numpy() for w in weights], losses


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("cell", "layers"), [("elman", 1), ("elman", 2), ("lstm", 2), ("gru", 1)])
def test_training_is_a_plain_loop_over_the_text(path, kernel, cell, layers):
    """20 updates, so beyond a block: each begins with the state that the one before it ended with, and its gradient ends there."""
    others = {"training.updates": 20, "task.ahead": 2, "model.name": cell, "model.layers": layers}
    configs = [make_config(values(path, training__kernel=kernel) | others | {"seed": seed}) for seed in (0, 1)]
    training = Training(configs)
    begun, found = training.theta.like(), []
    begun.flat.copy_(training.theta.flat)
    while not training.done:
        found += [snapshot.scalars["train/loss"] for snapshot in training.advance()]
    for run, config in enumerate(configs):
        weights, losses = plain(config, begun, run, 20)
        assert [loss[run] for loss in found[:20]] == pytest.approx(losses, rel=1e-9)
        theta = training.theta
        for own, w in zip((*(w for layer in theta.layers for w in layer), theta.V, theta.c), weights, strict=True):
            np.testing.assert_allclose(own[run], w, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("cell", ["leaky", "lstm"])
def test_the_kernels_measure_with_a_carried_state_what_the_reference_does(path, cell):
    """Every scalar and series of every row, the lecture's double sum too; and a checkpoint of one goes on in the other."""
    others = {"model.name": cell, "model.layers": 2, "model.leak": 0.5, "training.updates": 18, "training.log_every": 5}
    others |= {"probe.contributions_every": 5, "eval.every": 9}
    reference, fused = (
        Training([make_config(values(path, training__kernel=k) | others)]) for k in ("reference", "numba")
    )
    for _ in range(11):
        for ours, theirs in zip(reference.advance(), fused.advance(), strict=True):
            _same(ours, theirs)
    reference.restore(fused.state())
    for ours, theirs in zip(rest_of(reference), rest_of(fused), strict=True):
        _same(ours, theirs)


def _same(ours, theirs):
    assert ours.scalars.keys() == theirs.scalars.keys()
    for name in ours.scalars:
        np.testing.assert_allclose(theirs.scalars[name], ours.scalars[name], rtol=1e-6, atol=1e-9, err_msg=name)
    for name in ours.timesteps:
        np.testing.assert_allclose(theirs.timesteps[name], ours.timesteps[name], rtol=1e-5, atol=1e-6, err_msg=name)
    assert (ours.contributions is None) == (theirs.contributions is None)
    if ours.contributions is not None and theirs.contributions is not None:
        np.testing.assert_allclose(theirs.contributions, ours.contributions, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("stop", [1, 16, 20])
def test_a_run_goes_on_from_its_checkpoint_with_the_state_it_carried(path, stop, kernel):
    bitwise = {"training.dtype": "float32", "training.batch_size": 20, "model.hidden": 50}
    given = values(path, training__updates=30, training__kernel=kernel) | bitwise
    configs = [make_config(given | {"seed": seed}) for seed in (4, 5)]
    whole_run = rows(rest_of(Training(configs[1:])), 0)
    begun = Training(configs)
    before = [s for _ in range(stop) for s in begun.advance()]
    resumed = Training(configs[1:])
    resumed.restore([begun.state()[1]])
    assert rows(before, 1) + rows(rest_of(resumed), 0) == whole_run


@pytest.mark.parametrize("length", [3, 50, 1000])
def test_a_part_is_evaluated_whole_whatever_the_length_of_a_chunk(length):
    """Against torch.nn.RNN over each stream's whole length."""
    task = Characters(of_text(some_text(8000), ""), length)
    size, part = task.inputs, task.corpus.valid
    steps = (len(part) - 1) // STREAMS
    theta, rnn = random_parameters((1,), (size, 10, size)), torch.nn.RNN(size, 10).double()
    U, W, b = (w[0] for w in theta.layers[0])
    rnn.load_state_dict({"weight_ih_l0": U.T, "weight_hh_l0": W.T, "bias_ih_l0": b[0], "bias_hh_l0": torch.zeros(10)})
    x, y = (torch.from_numpy(part[k : k + steps * STREAMS].reshape(STREAMS, steps).astype(int)).T for k in (0, 1))
    with torch.no_grad():
        o = rnn(F.one_hot(x, size).double())[0] @ theta.V[0] + theta.c[0]
    found = whole(theta, Net(Elman(ACTIVATIONS["tanh"]), task.loss, length), task, part)
    assert found["loss"].item() == pytest.approx(F.cross_entropy(o.flatten(0, 1), y.flatten()).item(), rel=1e-9)
    assert found["error"].item() == pytest.approx((o.argmax(-1) != y).double().mean().item())


def test_alpha_is_divided_by_the_epoch(path):
    """With a learning rate of 0 nothing else changes: in epoch t the gradient is that of alpha / t."""
    others = {"regularizer.name": "omega", "optimizer.lr": 0.0, "training.updates": 200, "training.log_every": 200}
    task = Training([make_config(values(path))]).task
    decaying, fixed = (
        Training([make_config(values(path) | others | more)])
        for more in ({"regularizer.decay": "epoch"}, {"regularizer.alpha": 4 / 3})
    )
    epochs, equal = [], []
    for step in range(200):
        list(decaying.advance()), list(fixed.advance())
        epochs.append(task.epoch(step, 3))
        equal.append(torch.allclose(decaying.engine.grads.flat, fixed.engine.grads.flat, rtol=1e-12, atol=0))
    assert max(epochs) == 3
    assert equal == [epoch == 3 for epoch in epochs]


def test_a_command_trains_on_a_file_and_its_record_says_on_what(tmp_path):
    text = some_text(6000)
    (tmp_path / "lazy.txt").write_text(text)
    sizes = ("task.length=10", "training.batch_size=5", "model.hidden=20", "training.kernel=reference", "tracker=none")
    ended = train("-m", "task=characters", "task.path=lazy.txt", *sizes, "training.updates=60", "eval.every=30",
                  "optimizer.lr=2", "clip=none,norm", cwd=tmp_path)  # fmt: skip
    assert ended.status == 0, ended.err
    loaded = results.load(tmp_path / "runs" / "default")
    about = loaded.runs.iloc[0]
    assert about["data.sha256"] == hashlib.sha256(text.encode()).hexdigest()
    assert (about["data.text"], about["data.characters"], about["T"]) == ("lazy.txt", 6000, 10)
    for part, baseline in (("eval", "baseline/loss"), ("test", "baseline/test_loss")):
        assert (loaded.steps[f"{part}/loss"].dropna().index == loaded.steps.index[loaded.steps["step"] % 30 == 0]).all()
        assert (loaded.runs[f"{part}/loss"] < 0.8 * loaded.runs[baseline]).all()


# -------------------- loss and baselines


def test_the_loss_of_keys_is_the_sum_of_their_cross_entropies():
    torch.manual_seed(0)
    o = (5 * torch.randn(3, 4, 88, dtype=torch.float64)).requires_grad_()
    y = (torch.rand(3, 4, 88) < 0.1).double()
    expected = F.binary_cross_entropy_with_logits(o, y, reduction="none").sum(-1)
    E, dE_do = bernoulli_cross_entropy(o.detach(), y)
    assert torch.allclose(E, expected, rtol=1e-12)
    assert torch.allclose(dE_do, torch.autograd.grad(expected.sum(), o)[0], rtol=1e-9, atol=1e-12)
    far = torch.tensor([[1000.0], [-1000.0]])
    assert bernoulli_cross_entropy(far, torch.tensor([[1.0], [1.0]]))[0].tolist() == [0, 1000]


@pytest.mark.parametrize("ahead", [1, 5])
def test_unigrams_and_bigrams_are_counted_in_the_training_part(ahead):
    text = some_text(3000) + "Zebra?"
    train, valid, test = text[:2705], text[2705:2855], text[2855:]
    assert len(text) == 3006
    baseline = Characters(of_text(text, ""), 10, ahead).baseline_of("mean")
    symbols = [*sorted(set(train)), "?"]
    known = set(train)
    ones = Counter(train)
    pairs = Counter(zip(train, train[ahead:], strict=False))
    firsts = Counter(train[:-ahead])

    def p(b):
        return (ones[b] + 1) / (len(train) + len(symbols))

    def losses(part):
        part = [c if c in known else "?" for c in part]
        both = list(zip(part, part[ahead:], strict=False))
        alone = -sum(math.log(p(b)) for _, b in both) / len(both)
        given = -sum(math.log((pairs[a, b] + p(b)) / (firsts[a] + 1)) for a, b in both) / len(both)
        return alone, given, both

    alone, given, both = losses(valid)
    assert (baseline.loss, baseline.given_last_loss) == pytest.approx((alone, given))
    assert (baseline.test_loss, baseline.given_last_test_loss) == pytest.approx(losses(test)[:2])
    best = ones.most_common(1)[0][0]
    assert baseline.error == pytest.approx(sum(b != best for _, b in both) / len(both))
    assert baseline.smallest_error == pytest.approx(1 - Counter(b for _, b in both).most_common(1)[0][1] / len(both))
    total = Characters(of_text(text, ""), 10, ahead).baseline_of("sum")
    assert (total.loss, total.error) == (pytest.approx(10 * alone), baseline.error)


def test_a_keys_frequency_and_its_frequency_given_its_state():
    """Keys that stay down for long: what a key does now says what it will do; and the constant's loss is the marginal entropy."""
    rng = np.random.default_rng(0)
    n, stay, down = 60000, 0.9, np.zeros(88)
    part = np.zeros((n, 88), np.uint8)
    for t in range(1, n):  # a two-state chain, symmetric
        down = np.where(rng.random(88) < stay, down, 1 - down)
        part[t] = down
    task = Music(Corpus(part[:30000], part[30000:], part[30000:], 88, {}), 10)
    baseline = task.baseline_of("mean")
    assert baseline.loss == pytest.approx(88 * math.log(2), rel=2e-3)
    assert baseline.given_last_loss == pytest.approx(-88 * (0.9 * math.log(0.9) + 0.1 * math.log(0.1)), rel=5e-3)
    assert baseline.error == 1


def test_errors_are_fractions_of_steps():
    task = Music(chorales.of_pieces(rolls(40)), 4)
    y = torch.zeros(4, 2, 88)
    y[1, 0, 5] = 1
    o = torch.full((4, 2, 88), -1.0)
    o[1, 0, 5], o[2, 1, 7] = 1.0, 1.0
    assert task.wrong(o, y).tolist() == [0, 0.25]


@pytest.mark.parametrize("kernel", KERNELS)
def test_music_trains(kernel, monkeypatch):
    monkeypatch.setattr(chorales, "corpus", lambda: chorales.of_pieces(rolls(40)))
    of_corpus.cache_clear()
    config = make_config({"task.name": "music", "task.length": 20, "training.batch_size": 5, "model.hidden": 20, "optimizer.lr": 0.1,
                          "training.updates": 100, "eval.every": 100, "training.kernel": kernel})  # fmt: skip
    found = rest_of(Training([config]))
    of_corpus.cache_clear()
    first, last = found[0].scalars, found[-1].scalars
    for part in ("eval", "test"):
        assert last[f"{part}/loss"][0] < first[f"{part}/loss"][0] / 2
        assert 88 * 0.3 < last[f"{part}/loss"][0] < 88 * 0.4  # 88 keys, each down with probability .1: .325 nats
