"""The report: one file that shows every kind of result, safe to open whatever the scans are called."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from workers.errors import Reason
from workers.messages import Flag, ModelVersion, RejectReason, ScanResult, Status
from workers.report import RunFacts, write_report
from workers.report.html import MOST_PICTURES, OUTLINED, REVIEW, Shown, choose, percent, plain, render, section_of
from workers.report.overlays import OVERLAY_SIDE, Picture, drawing_size, outlines_of
from workers.report.writing import overlay_names
from workers.settings import StoreSettings
from workers.stores import MaskStore, mask_key, open_store
from workers.verdict import encode_mask, measure_mask

PROBABILITIES = {"glioma": 0.9, "meningioma": 0.04, "pituitary": 0.03, "no_tumor": 0.02, "not_brain_mri": 0.01}
MODELS = [ModelVersion(name="tumor_unet", version="1", sha256="ab" * 32)]


class Page(HTMLParser):
    """What a browser would see: tags with their attributes, and the text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        self.text += data

    def of(self, tag: str, of_class: str = "") -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag and of_class in attributes.get("class", "")]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[MaskStore]:
    with open_store(StoreSettings(uri=(tmp_path / "masks").as_uri())) as opened:
        yield opened


def save_scan(folder: Path, name: str, height: int = 256, width: int = 256) -> str:
    """Write a gray scan with a gradient and return its URI."""
    folder.mkdir(exist_ok=True)
    pixels = np.tile(np.linspace(20, 220, width).astype(np.uint8), (height, 1))
    done, png = cv2.imencode(".png", pixels)
    assert done
    (folder / name).write_bytes(png.tobytes())
    return (folder / name).as_uri()


def disc(height: int, width: int) -> NDArray[np.bool_]:
    rows, columns = np.ogrid[:height, :width]
    return (rows - height * 0.4) ** 2 + (columns - width * 0.6) ** 2 < (0.1 * max(height, width)) ** 2


def segmented(store: MaskStore, uri: str, mask: NDArray[np.bool_], flags: tuple[Flag, ...] = ()) -> ScanResult:
    scan_id = hashlib.sha256(uri.encode()).hexdigest()
    png = encode_mask(mask)
    [stored] = store.put_many([(mask_key(scan_id, scan_id, "models"), png)])
    return ScanResult(
        scan_id=scan_id,
        source=uri,
        status=Status.SEGMENTED,
        flags=list(flags),
        probabilities=PROBABILITIES,
        tumor_type="glioma",
        mask=measure_mask(mask, png, stored, (0.5, 0.5)),
        max_probability=0.98,
        threshold=0.5,
        models=MODELS,
        timing_ms={"decode": 1.5, "end_to_end": 40.0},
    )


def rejected(uri: str, message: str = "the file is damaged") -> ScanResult:
    reason = RejectReason(code=Reason.DAMAGED, message=message, step="decode")
    return ScanResult(scan_id=uri, source=uri, status=Status.REJECTED, reason=reason)


def stored_mask(result: ScanResult) -> Path:
    assert result.mask is not None
    return Path(result.mask.uri.removeprefix("file://"))


def one_of_each(store: MaskStore, folder: Path) -> list[ScanResult]:
    plain_ones = [
        ScanResult(scan_id=status, source=save_scan(folder, f"{status}.png"), status=status, models=MODELS)
        for status in (Status.NO_TUMOR, Status.NOT_BRAIN_MRI, Status.UNCERTAIN)
    ]
    return [
        segmented(store, save_scan(folder, "tumour.png"), disc(256, 256)),
        segmented(store, save_scan(folder, "empty.png"), np.zeros((256, 256), np.bool_), tuple(Flag)),
        *plain_ones,
        rejected("file:///scans/broken.jpg"),
    ]


def report_of(results: list[ScanResult], out: Path, store: MaskStore, missing: tuple[str, ...] = ()) -> Page:
    return Page(write_report(results, out, store, RunFacts(2.0, missing)).read_text(encoding="utf-8"))


def test_the_report_loads_nothing_from_anywhere(tmp_path: Path, store: MaskStore) -> None:
    results = one_of_each(store, tmp_path / "scans")

    html = write_report(results, tmp_path, store, RunFacts(2.0)).read_text(encoding="utf-8")

    page = Page(html)
    for _, attributes in page.tags:
        for name in ("src", "href", "srcset", "poster", "action", "data", "xlink:href"):
            assert re.match(r"data:image/jpeg;base64,|#", attributes.get(name, "#")), attributes
    assert not re.search(r"url\(|@import|https?://", html)
    assert not page.of("script")
    assert {"http-equiv": "Content-Security-Policy"}.items() <= page.of("meta")[1].items()


def test_every_scan_is_shown_once(tmp_path: Path, store: MaskStore) -> None:
    results = one_of_each(store, tmp_path / "scans")

    page = report_of(results, tmp_path, store)

    assert len(page.of("li", "card")) == 5
    assert len(page.of("img")) == 5
    assert len(page.of("svg", "outline")) == 1
    for name in ("tumour.png", "empty.png", "no_tumor.png", "not_brain_mri.png", "uncertain.png", "broken.jpg"):
        assert page.text.count(name) == 1
    assert "the file is damaged" in page.text
    assert "ab" * 32 in page.text
    assert "Class and mask disagree" in page.text
    assert f"{round(disc(256, 256).sum() * 0.25)} mm²" in page.text


def test_what_a_person_should_look_at_stands_together(tmp_path: Path, store: MaskStore) -> None:
    agreed = segmented(store, save_scan(tmp_path, "agreed.png"), disc(256, 256))
    flagged = segmented(store, save_scan(tmp_path, "flagged.png"), disc(256, 256), tuple(Flag))
    uncertain = ScanResult(scan_id="u", source="file:///u.png", status=Status.UNCERTAIN)

    assert [section_of(result) for result in (agreed, flagged, uncertain)] == [OUTLINED, REVIEW, REVIEW]


def test_people_who_cannot_see_the_pictures_are_told_what_they_show(tmp_path: Path, store: MaskStore) -> None:
    page = report_of(one_of_each(store, tmp_path / "scans"), tmp_path, store)

    assert any("tumour.png: Glioma, " in image["alt"] for image in page.of("img"))
    assert all(image["alt"] for image in page.of("img"))
    assert all(header.get("scope") for header in page.of("th"))
    assert next(tag for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)) == "h1"
    assert any("Glioma 90 %, Meningioma 4 %" in bar.get("aria-label", "") for bar in page.of("div", "stack"))


def test_names_and_messages_are_text_and_never_markup(tmp_path: Path, store: MaskStore) -> None:
    folder = tmp_path / "scans"
    evil = "<script>alert(1)<script>.png"
    results = [
        segmented(store, save_scan(folder, evil), disc(256, 256)),
        segmented(store, save_scan(folder, '" onload="alert(1).png'), disc(256, 256)),
        rejected("<img src=x onerror=alert(1)>", message="</td><script>alert(1)</script>"),
    ]

    page = report_of(results, tmp_path, store, missing=("</ul><script>x",))

    assert not page.of("script")
    assert len(page.of("img")) == 2
    assert not any("onload" in attributes or "onerror" in attributes for _, attributes in page.tags)
    assert evil in page.text
    assert sorted(path.name for path in (tmp_path / "overlays").iterdir()) == [
        "onload_alert_1.jpg",
        "script_alert_1_script.jpg",
    ]


def test_text_that_could_turn_or_flood_the_page_is_tamed() -> None:
    assert plain("a\u202egnp.exe\n\x00") == "a\ufffdgnp.exe\ufffd\ufffd"
    assert len(plain("x" * 5000)) < 200


def test_inputs_without_a_result_are_named_first(tmp_path: Path, store: MaskStore) -> None:
    page = report_of([], tmp_path, store, missing=("file:///scans/lost%20scan.dcm",))

    assert "1 input has no result." in page.text
    assert "lost scan.dcm" in page.text


def test_a_run_without_results_has_a_report(tmp_path: Path, store: MaskStore) -> None:
    page = report_of([], tmp_path, store)

    assert not page.of("li", "card")
    assert "0" in page.text
    assert "not approved for diagnosis" in page.text


def test_a_scan_or_mask_that_is_gone_leaves_a_remark_in_its_place(tmp_path: Path, store: MaskStore) -> None:
    folder = tmp_path / "scans"
    gone = segmented(store, save_scan(folder, "gone.png"), disc(256, 256))
    (folder / "gone.png").unlink()
    remote = gone.model_copy(update={"source": "s3://bucket/remote.png"})
    nameless = gone.model_copy(update={"source": ""})
    no_mask = segmented(store, save_scan(folder, "no-mask.png"), disc(256, 256))
    stored_mask(no_mask).unlink()
    other_mask = segmented(store, save_scan(folder, "other-mask.png"), disc(256, 256))
    stored_mask(other_mask).write_bytes(encode_mask(~disc(256, 256)))
    damaged = segmented(store, save_scan(folder, "damaged-mask.png"), disc(256, 256))
    stored_mask(damaged).write_bytes(b"no PNG")
    other_size = segmented(store, save_scan(folder, "other-size.png", 100, 100), disc(256, 256))

    page = report_of([gone, remote, nameless, no_mask, other_mask, damaged, other_size], tmp_path, store)

    assert len(page.of("li", "card")) == 7
    assert page.text.count("The scan is not where it was") == 3
    assert page.text.count("The mask can't be read") == 4
    assert not page.of("svg", "outline")
    assert len(list((tmp_path / "overlays").iterdir())) == 4


@pytest.mark.parametrize("size", [(256, 256), (512, 512), (100, 60), (60, 100), (700, 1100)])
def test_the_outline_lies_on_the_edge_of_the_mask(tmp_path: Path, store: MaskStore, size: tuple[int, int]) -> None:
    mask = disc(*size)

    report_of([segmented(store, save_scan(tmp_path / "scans", "scan.png", *size), mask)], tmp_path, store)

    overlay = cv2.imread(str(tmp_path / "overlays" / "scan.jpg"))
    assert overlay is not None
    assert max(overlay.shape) == OVERLAY_SIDE
    assert overlay.shape[0] / overlay.shape[1] == pytest.approx(size[0] / size[1], rel=0.01)
    blue, _, red = cv2.split(overlay.astype(int))
    drawn = np.argwhere(red - blue > 120)
    edge = np.argwhere(mask) * (OVERLAY_SIDE / max(size))
    # A scan's pixel may be 9 wide here; the line itself is 2.
    tolerance = 2 + OVERLAY_SIDE / max(size)
    assert np.abs(drawn.min(axis=0) - edge.min(axis=0)).max() <= tolerance
    assert np.abs(drawn.max(axis=0) - edge.max(axis=0)).max() <= tolerance


def test_a_scan_without_tumour_is_shown_as_it_is(tmp_path: Path, store: MaskStore) -> None:
    uri = save_scan(tmp_path / "scans", "clear.png")

    report_of([segmented(store, uri, np.zeros((256, 256), np.bool_))], tmp_path, store)

    overlay = cv2.imread(str(tmp_path / "overlays" / "clear.jpg"))
    assert overlay is not None
    assert np.ptp(overlay.astype(int), axis=2).max() == 0


def test_a_tumour_of_one_pixel_is_outlined() -> None:
    for side in (256, 369, 512):
        decision = np.zeros((256, 256), np.uint8)
        decision[100, 57] = 255
        mask = cv2.resize(decision, (side, side), interpolation=cv2.INTER_NEAREST_EXACT)

        outlines = outlines_of(mask.astype(np.uint8), (OVERLAY_SIDE, OVERLAY_SIDE))

        assert len(outlines) == 1


def test_holes_are_outlined_too() -> None:
    ring = np.zeros((256, 256), np.uint8)
    cv2.circle(ring, (128, 128), 60, 255, 20)

    assert len(outlines_of(ring, (OVERLAY_SIDE, OVERLAY_SIDE))) == 2


def test_overlays_never_overwrite_each_other() -> None:
    sources = ["a/IM1", "b/IM1", "b/im1", "c/IM1-2", "IM1-2.dcm", "..", "", ".hidden", "é" * 300, "x/%2e%2e%2fetc"]
    results = [ScanResult(scan_id="../id", source=source, status=Status.UNCERTAIN) for source in sources]

    names = overlay_names(results)

    assert len({name.lower() for name in names}) == len(sources)
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{1,90}\.jpg", name) for name in names)


def big_run() -> list[ScanResult]:
    """5,000 results, sorted by status, almost all of one kind."""
    outlined = ScanResult(scan_id="o", status=Status.SEGMENTED, probabilities=PROBABILITIES, source="x" * 4000)
    kinds = (
        (4000, outlined),
        (700, ScanResult(scan_id="n", status=Status.NOT_BRAIN_MRI, probabilities=PROBABILITIES)),
        (5, ScanResult(scan_id="u", status=Status.UNCERTAIN, probabilities=PROBABILITIES)),
        (295, rejected("y" * 4000, "z" * 4000)),
    )
    return [result for count, result in kinds for _ in range(count)]


def test_a_small_part_of_a_large_run_is_shown_with_all_its_scans() -> None:
    results = big_run()

    chosen = choose(results)

    shown = Counter(section.id for index in chosen if (section := section_of(results[index])))
    assert shown == {"review": 5, "clear": 58, "turned-away": 57}
    assert sum(shown.values()) == MOST_PICTURES
    first, last = min(chosen), max(index for index in chosen if index < 4000)
    assert (first, last) == (0, 3999)


def test_the_outline_of_a_mask_made_of_noise_is_drawn_coarsely() -> None:
    speckles = (np.random.default_rng(1).random((256, 256)) < 0.4).astype(np.uint8) * np.uint8(255)
    picture = Picture(speckles, outlines_of(speckles, drawing_size(speckles)))

    assert len(picture.outlines) > 1000
    assert 0 < len(picture.svg_path()) <= 8_000


def test_the_report_of_5000_scans_stays_under_8_mb_whatever_they_show() -> None:
    results = big_run()
    noise = np.random.default_rng(1)
    pixels = noise.integers(0, 256, (256, 256), np.uint8)
    blocks = np.kron((noise.random((32, 32)) < 0.4).astype(np.uint8) * 255, np.ones((8, 8))).astype(np.uint8)
    picture = Picture(pixels, outlines_of(blocks, drawing_size(pixels)))
    assert len(picture.svg_path()) > 4_000
    shown = {index: Shown(picture, "") for index in choose(results)}
    missing = ["file:///" + "m" * 4000] * 5000

    html = render(results, shown, seconds=60.0, missing=missing, finished_at=datetime.now(UTC))

    page = Page(html)
    assert len(html.encode()) < 8_000_000
    assert len(page.of("li", "card")) == MOST_PICTURES
    assert "4,585 scans are left out here" in page.text
    assert "95 more are in" in page.text


def test_a_percentage_never_claims_more_than_it_knows() -> None:
    shares = (0.0, 0.0004, 0.5, 0.994, 0.9996, 1.0)

    assert [percent(share) for share in shares] == ["0 %", "< 1 %", "50 %", "> 99 %", "> 99 %", "100 %"]
