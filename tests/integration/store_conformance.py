"""What every mask store must do. Each backend's tests inherit it and give the store's address."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from workers.settings import StoreSettings
from workers.stores import MaskStore, mask_key, open_store

TIMEOUT_S = 10.0
MODELS = hashlib.sha256(b"weights and threshold").hexdigest()
ODD_SCAN_IDS = [
    "../../etc/passwd",
    "/absolute",
    "..",
    "",
    " ",
    "a/b//c",
    "a\\b",
    "Ünïcode/脑/🧠",
    "nul\0byte",
    "new\nline",
    "percent%2e%2e%2f",
    "question?mark#hash",
    "lone\udc80surrogate",
    "x" * 100_000,
    "CASE",
    "case",
]


class StoreConformance(ABC):
    """The suite. A subclass provides `uri`."""

    @pytest.fixture
    @abstractmethod
    def uri(self) -> str:
        """Address of a running store that only this test uses."""

    @pytest.fixture
    def store(self, uri: str) -> Iterator[MaskStore]:
        with open_store(StoreSettings(uri=uri, timeout_s=TIMEOUT_S)) as store:
            yield store

    def test_a_stored_mask_is_read_back_byte_by_byte(self, store: MaskStore) -> None:
        key, every_byte = mask_key("scan", "file", MODELS), bytes(range(256)) * 40

        store.put_many([(key, every_byte)])

        assert store.get(key) == every_byte

    def test_a_mask_that_was_never_stored_is_none(self, store: MaskStore) -> None:
        store.put_many([(mask_key("another", "file", MODELS), b"1")])

        assert store.get(mask_key("scan", "file", MODELS)) is None
        assert store.get(mask_key("scan", "file", "models that never ran")) is None

    def test_uris_come_in_order_and_name_each_mask_once(self, store: MaskStore) -> None:
        keys = [mask_key(f"scan {number}", "file", MODELS) for number in range(40)]

        uris = store.put_many([(key, key.encode()) for key in keys])

        assert [uri.endswith(key) for uri, key in zip(uris, keys, strict=True)] == [True] * 40
        assert len(set(uris)) == 40
        assert [store.get(key) for key in keys] == [key.encode() for key in keys]

    def test_nothing_to_store_is_no_work(self, store: MaskStore) -> None:
        assert store.put_many([]) == []

    def test_an_empty_file_is_stored_as_such(self, store: MaskStore) -> None:
        key = mask_key("scan", "file", MODELS)

        store.put_many([(key, b"")])

        assert store.get(key) == b""

    def test_storing_again_gives_the_same_uri_and_the_newer_bytes(self, store: MaskStore) -> None:
        key = mask_key("scan", "file", MODELS)
        first = store.put_many([(key, b"first, and longer")])

        second = store.put_many([(key, b"second")])

        assert second == first
        assert store.get(key) == b"second"

    def test_of_a_key_that_comes_twice_in_a_batch_the_last_stays(self, store: MaskStore) -> None:
        key = mask_key("scan", "file", MODELS)

        # The first takes longer to write than the last.
        uris = store.put_many([(key, bytes(5_000_000)), (mask_key("other", "file", MODELS), b"other"), (key, b"last")])

        assert store.get(key) == b"last"
        assert uris[0] == uris[2]

    def test_odd_scan_ids_are_stored_and_told_apart(self, store: MaskStore) -> None:
        masks = [(mask_key(scan_id, "file", MODELS), json.dumps(scan_id).encode()) for scan_id in ODD_SCAN_IDS]

        uris = store.put_many(masks)

        assert len(set(uris)) == len(ODD_SCAN_IDS)
        assert [store.get(key) for key, _ in masks] == [file for _, file in masks]

    @pytest.mark.parametrize("key", ["../escape", "/etc/passwd", "a/../b", ".hidden", "a//b", "", "ü", "a b", "a\nb"])
    def test_a_key_that_could_harm_a_backend_is_refused(self, store: MaskStore, key: str) -> None:
        with pytest.raises(ValueError, match="key"):
            store.put_many([(key, b"1")])
        with pytest.raises(ValueError, match="key"):
            store.get(key)

    def test_a_mask_of_several_megabytes_is_stored(self, store: MaskStore) -> None:
        key, large = mask_key("mosaic", "file", MODELS), bytes(range(256)) * 4096 * 8

        store.put_many([(key, large)])

        assert store.get(key) == large

    def test_batches_are_stored_from_several_threads_at_once(self, store: MaskStore) -> None:
        def put_batch(number: int) -> None:
            store.put_many(
                [(mask_key(f"{number} {each}", "file", MODELS), f"{number} {each}".encode()) for each in range(16)]
            )

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(put_batch, range(12)))

        missing = [
            (number, each)
            for number in range(12)
            for each in range(16)
            if store.get(mask_key(f"{number} {each}", "file", MODELS)) != f"{number} {each}".encode()
        ]
        assert missing == []

    def test_two_processes_that_write_one_key_leave_one_whole_mask(self, uri: str, store: MaskStore) -> None:
        key = mask_key("contested", "file", MODELS)
        contents = [bytes([letter]) * 50_000 for letter in b"AB"]
        store.put_many([(key, contents[0])])
        torn = []
        over = threading.Event()

        def watch() -> None:
            while not over.is_set():
                seen = store.get(key)
                if seen not in contents:
                    torn.append(seen)

        watcher = threading.Thread(target=watch)
        watcher.start()
        processes = [
            multiprocessing.get_context("spawn").Process(target=_write_often, args=(uri, key, content))
            for content in contents
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        over.set()
        watcher.join()

        assert [process.exitcode for process in processes] == [0, 0]
        assert torn == []

    def test_a_store_opened_again_has_what_the_first_stored(self, uri: str, store: MaskStore) -> None:
        key = mask_key("scan", "file", MODELS)
        uris = store.put_many([(key, b"kept")])
        store.close()

        with open_store(StoreSettings(uri=uri, timeout_s=TIMEOUT_S)) as again:
            assert again.get(key) == b"kept"
            assert again.put_many([(key, b"kept")]) == uris


def _write_often(uri: str, key: str, content: bytes) -> None:
    with open_store(StoreSettings(uri=uri, timeout_s=TIMEOUT_S)) as store:
        for _ in range(50):
            store.put_many([(key, content)])
