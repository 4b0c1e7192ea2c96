"""The order of a stream is exact: every row once, a function of its address, and a resume reads what is left."""

import logging
from collections import Counter

import pytest
import torch
from accelerate import skip_first_batches
from accelerate.data_loader import BatchSamplerShard, DataLoaderShard
from torch.utils.data import BatchSampler, DataLoader

from hf_vitfm.data.order import ImageView
from hf_vitfm.data.streams import StreamOrder, StreamRows
from hf_vitfm.data.transforms import _ToTensor
from tests.data.images import noise, write_tar
from tests.data.streaming import count_reads, open_shards, picture, write_shards


SIZES = [17, 4, 30, 0, 9, 23]  # 83 rows


@pytest.fixture
def rows(tmp_path):
    return StreamRows(open_shards(write_shards(tmp_path / "shards", SIZES)), window=8)


def make_order(rows, processes=1, workers=0, micro_batch=2, accumulation=2, seed=3):
    return StreamOrder(
        rows,
        seed,
        micro_batch=micro_batch,
        global_batch=micro_batch * accumulation * processes,
        processes=processes,
        workers=workers,
    )


def noisy(image):
    """Pixels plus noise of the row's address."""
    return _ToTensor(3)(image).float() + torch.rand(1)


def batches_of(order, process=0):
    """The batches of addresses that accelerate gives one process."""
    batches = BatchSampler(order, order.micro_batch, drop_last=True)
    return list(BatchSamplerShard(batches, order.processes, process))


def loader_of(rows, order, process=0, workers=0):
    """A loader as accelerate prepares it for one process."""
    batches = BatchSamplerShard(BatchSampler(order, order.micro_batch, drop_last=True), order.processes, process)
    view = ImageView(rows, noisy, seed=7)
    return DataLoaderShard(view, batch_sampler=batches, num_workers=workers)


def flat(loader):
    return [
        (int(label), pixels)
        for batch in loader
        for label, pixels in zip(batch["label"], batch["pixel_values"], strict=True)
    ]


@pytest.mark.parametrize(("processes", "workers"), [(1, 0), (1, 2), (2, 1), (2, 3), (4, 4)])
def test_every_row_comes_at_most_once_per_epoch_in_whole_global_batches(rows, processes, workers):
    order = make_order(rows, processes, workers)
    for epoch in range(3):
        order.set_epoch(epoch)
        keys = list(order)
        global_batch = 4 * processes
        assert len(keys) == len(order) == 83 // global_batch * global_batch
        assert {key[0] for key in keys} == {epoch}
        assert max(Counter(int(index) for _, index in keys).values()) == 1
        shared = [len(batches_of(order, process)) for process in range(processes)]
        assert shared == [len(order) // 2 // processes] * processes


def test_over_some_epochs_every_row_comes(rows):
    order = make_order(rows, 2, 2)
    seen = set()
    for epoch in range(8):
        order.set_epoch(epoch)
        seen |= {int(index) for _, index in order}
    assert seen == set(range(83))


def test_the_order_is_a_function_of_seed_and_epoch(rows):
    def indices(seed, epoch):
        order = make_order(rows, 2, 2, seed=seed)
        order.set_epoch(epoch)
        return [int(index) for _, index in order]

    before = torch.get_rng_state()
    assert indices(1, 4) == indices(1, 4)
    assert len({tuple(indices(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("processes", "workers"), [(1, 2), (2, 3)])
def test_a_reader_goes_once_through_a_range_of_its_own(rows, processes, workers):
    order = make_order(rows, processes, workers)
    ranges = []
    for process in range(processes):
        for worker in range(workers):
            batches = batches_of(order, process)[worker::workers]  # as torch shares them between workers
            windows = list(dict.fromkeys(index.window for batch in batches for _, index in batch))
            taken = [index.window for batch in batches for _, index in batch]
            assert taken == sorted(taken, key=windows.index)  # no window is left and taken up again
            own = [
                row
                for window in windows
                for shard, start, stop in window
                for row in range(rows.starts[shard] + start, rows.starts[shard] + stop)
            ]
            assert sorted(own) == sorted(int(index) for batch in batches for _, index in batch)
            assert all(sum(stop - start for _, start, stop in window) <= 8 for window in windows)
            ranges += own
    assert len(ranges) == len(set(ranges))


def test_rows_are_shuffled_in_their_window(rows):
    indices = [int(index) for _, index in make_order(rows)]
    windows = [indices[i : i + 8] for i in range(0, 80, 8)]
    assert sum(window != sorted(window) for window in windows) >= 9


def test_a_window_has_another_order_in_every_epoch(tmp_path):
    order = make_order(StreamRows(open_shards(write_shards(tmp_path / "one", [8])), window=8))
    epochs = []
    for epoch in range(4):
        order.set_epoch(epoch)
        epochs.append(tuple(int(index) for _, index in order))
    assert {tuple(sorted(rows)) for rows in epochs} == {tuple(range(8))}
    assert len(set(epochs)) == 4


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_addresses_give_their_rows(tmp_path, kind):
    rows = StreamRows(open_shards(write_shards(tmp_path / "shards", [11, 7, 20], kind)), window=8)
    for _, index in make_order(rows):
        row = rows[index]
        assert int(row["label"]) == index
        assert row["image"]["bytes"] == picture(index)
    assert [int(row["label"]) for row in rows] == list(range(38))
    assert int(rows[20]["label"]) == 20


def test_workers_see_what_one_process_sees(rows):
    order = make_order(rows, 2, 2)
    for process in range(2):
        alone, shared = (flat(loader_of(rows, order, process, workers)) for workers in (0, 2))
        assert [label for label, _ in alone] == [index for batch in batches_of(order, process) for _, index in batch]
        assert all(a == b and torch.equal(x, y) for (a, x), (b, y) in zip(alone, shared, strict=True))


@pytest.mark.parametrize("skipped", [1, 4, 7])
def test_a_run_goes_on_where_it_stopped(rows, skipped):
    order = make_order(rows, 2, 2)
    order.set_epoch(1)
    whole = flat(loader_of(rows, order, 1, 2))
    rest = flat(skip_first_batches(loader_of(rows, order, 1, 2), skipped))
    assert len(rest) == len(whole) - 2 * skipped > 0
    assert all(a == b and torch.equal(x, y) for (a, x), (b, y) in zip(rest, whole[2 * skipped :], strict=True))


@pytest.mark.parametrize("kind", ["tar", "parquet"])
@pytest.mark.parametrize("skipped", [0, 5, 19, 30])
def test_a_resume_reads_the_rest_and_no_more_than_a_window_per_reader(tmp_path, monkeypatch, kind, skipped):
    rows = StreamRows(open_shards(write_shards(tmp_path / "shards", [40, 40, 48], kind, group=4)), window=8)
    order = make_order(rows, workers=2)
    batches = batches_of(order)
    counts = count_reads(monkeypatch)
    for reader in range(2):  # each worker has a copy of its own
        rows._loaded = None
        [shard.release() for shard in rows.shards]
        for batch in batches[skipped:][reader::2]:
            [rows[index] for _, index in batch]
    size = 1.25 * len(picture(0))  # with the label, the headers and the like
    left = 2 * len(batches[skipped:])
    assert left * len(picture(0)) <= counts["bytes"] <= (left + 2 * 8) * size


def test_workers_of_an_evaluation_do_not_all_read_everything(tmp_path, monkeypatch):
    rows = StreamRows(open_shards(write_shards(tmp_path / "shards", [256])), window=256)
    counts = count_reads(monkeypatch)
    for worker in range(2):
        rows._loaded = None
        [rows[i] for i in range(256) if i // 64 % 2 == worker]
    assert counts["bytes"] < 1.25 * 256 * len(picture(0))


def test_bad_images_are_replaced_from_the_window_at_hand(tmp_path, monkeypatch):
    write_tar(tmp_path / "train.tar", {f"{i}.png": b"" if i in (3, 20) else picture(i) for i in range(32)})
    rows = StreamRows(open_shards([str(tmp_path / "train.tar")]), window=8)
    view = ImageView(rows, lambda image: _ToTensor(3)(image).float(), seed=0, on_bad_image="skip")
    loads = []
    load = rows._load
    monkeypatch.setattr(rows, "_load", lambda window: loads.append(window) or load(window))
    pixels = [view[key]["pixel_values"] for key in make_order(rows)]
    assert len(loads) == 4
    assert view.bad_indices() == [3, 20]
    assert view.name(20).startswith("row 20 (") and view.name(20).endswith("train.tar/20.png)")
    known = [torch.from_numpy(noise(16, 16, seed=i)).permute(2, 0, 1).float() for i in range(32)]
    assert len(pixels) == 32 and all(any(torch.equal(image, own) for own in known) for image in pixels)


def test_names_become_ids(tmp_path):
    write_tar(tmp_path / "a.tar", {"1.png": b"", "1.cls": "dog", "2.png": b"", "2.cls": "1", "3.png": b""})
    shards = open_shards([str(tmp_path / "a.tar")])
    rows = StreamRows(shards, label_names=["cat", "dog"])
    assert [row.get("label") for row in rows] == [1, 1, None]
    assert rows.features["label"].names == ["cat", "dog"]
    with pytest.raises(ValueError, match=r"a\.tar/1\.png has the label 'dog', .*none of the 0 names"):
        StreamRows(shards)[0]
    with pytest.raises(ValueError, match=r"a\.tar/2\.png has the label 1; there are 1 classes"):
        StreamRows(shards, label_names=["dog"])[1]


def test_fewer_shards_than_readers_is_said_once(rows, caplog):
    with caplog.at_level(logging.WARNING):
        order = make_order(rows, 2, 4)
    assert [record.message[:33] for record in caplog.records] == ["6 shards for 8 readers (2 process"]
    assert len(list(order)) == len(order)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda rows: StreamRows([]), "at least one shard"),
        (lambda rows: StreamRows(rows.shards, window=0), "`window` must be at least 1"),
        (lambda rows: StreamOrder(rows, 0, micro_batch=4, global_batch=6), "multiple of"),
        (
            lambda rows: StreamOrder(rows, 0, micro_batch=84, global_batch=84),
            "83 rows, fewer than one global batch of 84",
        ),
    ],
)
def test_what_cannot_be_is_refused(rows, make, message):
    with pytest.raises(ValueError, match=message):
        make(rows)
    with pytest.raises(IndexError):
        rows[83]


def test_a_loader_that_is_not_accelerates_works_too(rows):
    view = ImageView(rows, noisy, seed=7)
    loader = DataLoader(view, sampler=make_order(rows), batch_size=2)
    assert sorted(label for label, _ in flat(loader)) == sorted(int(index) for _, index in make_order(rows))
