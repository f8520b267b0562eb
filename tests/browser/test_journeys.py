"""What people do with the page, in a real browser."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, Route, expect

import live
import tiny
from dermlens import Predictor

Open = Callable[..., Page]
Pictures = dict[str, Path]


def read(page: Page, *paths: Path) -> None:
    page.set_input_files("#file", [str(path) for path in paths])
    page.get_by_role("button", name=re.compile("^Read")).click()
    page.wait_for_selector(".verdict h2")
    expect(page.locator(".thumb span", has_text="·")).to_have_count(0)


def heat_shown(page: Page, code: str) -> None:
    page.wait_for_selector(f'.heat[data-shown="{code}"]')


def test_a_chosen_image_is_read_and_explained(watched: Open, address: str, pictures: Pictures) -> None:
    """What the model reads is said first; the image goes out byte for byte and without its name."""
    page = watched(address)
    expect(page.locator("#scope")).to_have_text("Reads plain colours.")
    assert page.locator("main").inner_text().split("\n").index("Reads plain colours.") <= 3
    expect(page.locator("#disclaimer")).to_contain_text("not a diagnosis")
    page.evaluate(
        """() => { const send = window.fetch; window.sent = [];
        window.fetch = async (path, options) => {
          const image = options?.body?.get?.("image");
          if (image) window.sent.push([image.name, Array.from(new Uint8Array(await image.arrayBuffer()))]);
          return send(path, options); }; }"""
    )
    read(page, pictures["red"])
    name, body = page.evaluate("window.sent[0]")
    assert name == "image" and bytes(body) == pictures["red"].read_bytes()
    expect(page.locator(".verdict h2")).to_contain_text("Mel ")
    expect(page.locator(".verdict h2")).to_be_focused()
    expect(page.locator(".verdict")).to_contain_text("if all three diagnoses were equally common")
    expect(page.locator(".advice.refer .head")).to_have_text("Refer to a specialist")
    expect(page.locator(".advice")).to_contain_text("The limit is 38.4 %.")
    bars = page.locator(".bars tbody tr").all_inner_texts()
    assert [bar.split()[0] for bar in bars] == ["Mel", "Bkl", "Nv"], "in the order of the answer"
    expect(page.locator(".bars .chosen th")).to_contain_text("Mel")
    expect(page.get_by_role("heading", name="Cannot be ruled out")).to_be_visible()
    expect(page.locator(".set")).to_have_text("Mel")
    assert page.locator(".reminder").inner_text().startswith("For research and decision support only")
    assert page.locator("body").inner_text().count("not a diagnosis") == 1, "the disclaimer is said once"
    parts = [".verdict", ".advice", ".bars", ".set", ".why", "details.more"]
    tops = [page.locator(part).bounding_box()["y"] for part in parts]
    assert tops == sorted(tops), "what comes first is what matters first"
    expect(page.get_by_text("98.3 %")).to_be_hidden()
    page.get_by_text("Details").click()
    expect(page.get_by_text("98.3 %")).to_be_visible()
    heat_shown(page, "MEL")
    page.get_by_label("Evidence for").select_option("BKL")
    heat_shown(page, "BKL")
    page.locator("#heat-opacity").fill("0.9")
    assert page.locator(".heat").evaluate("e => e.style.opacity") == "0.9"


def test_what_cannot_be_told_is_said_with_its_reason_and_what_to_do(
    watched: Open, address: str, pictures: Pictures
) -> None:
    """Uncertain: between which. Unfamiliar: numbers that are marked. Unusable and broken: none. Each has its advice."""
    page = watched(address, tolerate="422")

    def again(name: str) -> None:
        page.get_by_role("button", name="Start over").click()
        read(page, pictures[name])

    read(page, pictures["grey"])
    expect(page.get_by_text("Uncertain: the model cannot decide")).to_be_visible()
    expect(page.locator(".verdict h2")).to_have_text("Bkl 36 %")
    expect(page.locator(".other")).to_have_text("or mel 33 %")
    expect(page.locator(".advice.no_referral")).to_contain_text("Mel cannot be ruled out: have the lesion seen if")
    again("blue")
    expect(page.locator(".verdict h2")).to_have_text("The model cannot judge this picture")
    expect(page.get_by_text("This picture is unlike those that the model learned from.").first).to_be_visible()
    expect(page.locator(".advice.see_clinician .head")).to_have_text("Have a clinician see the lesion")
    expect(page.locator(".bars caption")).to_have_text("Not to be relied on")
    assert page.locator(".bars tbody tr").count() == 3 and page.locator(".bars .chosen, .set, .heat").count() == 0
    again("black")
    expect(page.locator(".verdict h2")).to_have_text("This picture cannot be used")
    expect(page.get_by_text("The picture is too dark.").first).to_be_visible()
    expect(page.locator(".advice.retake .head")).to_have_text("Take another picture, or have the lesion seen")
    assert page.locator(".bars, .set, .heat").count() == 0
    again("broken")
    expect(page.locator(".verdict h2")).to_have_text("This image could not be read")
    expect(page.locator(".advice.error .head")).to_have_text("Copy or download it again.")
    expect(page.get_by_role("button", name="Try again")).to_be_visible()


def test_another_case_mix_is_asked_for_and_kept(watched: Open, address: str, pictures: Pictures) -> None:
    """Every image on the bench follows, and the browser remembers."""
    page = watched(address)
    sent: list[str] = []
    page.on("request", lambda r: sent.append(r.url) if r.url.endswith("/predictions") else None)
    read(page, pictures["red"], pictures["grey"])
    page.locator(".thumb").nth(1).click()
    expect(page.locator(".verdict h2")).to_have_text("Bkl 36 %")
    change = page.get_by_role("button", name="Change how common each diagnosis is")
    change.click()
    assert page.locator("input[name=NV]").is_hidden()
    page.get_by_label("As in the training data").check()
    page.get_by_role("button", name="Use this").click()
    expect(page.locator(".verdict h2")).to_have_text("Mel 50 %")
    expect(page.locator(".mix")).to_contain_text("if the diagnoses were as common as in the training data")
    assert len(sent) == 4, "both images were read again"
    change.click()
    page.get_by_label("My own shares").check()
    page.locator("input[name=NV]").fill("0")
    page.get_by_role("button", name="Use this").click()
    expect(page.get_by_role("dialog")).to_be_visible()  # a share must be above 0
    for name, number in (("NV", "90"), ("BKL", "5"), ("MEL", "5")):
        page.locator(f"input[name={name}]").fill(number)
    page.get_by_role("button", name="Use this").click()
    expect(page.locator(".verdict h2")).to_contain_text("The model cannot judge")  # in this test every nevus is strange
    page.locator(".thumb").first.click()
    expect(page.locator(".mix")).to_contain_text("as common as in your own shares")
    page.reload()
    page.wait_for_selector(".well")
    read(page, pictures["red"])
    expect(page.locator(".mix")).to_contain_text("as common as in your own shares")
    page.get_by_role("button", name="History").click()
    expect(page.locator(".readings li")).to_have_count(3)  # reading again keeps one entry for each image


@pytest.mark.long
def test_a_first_visitor_tries_the_example(watched: Open, real_address: str) -> None:
    page = watched(real_address)
    page.get_by_role("button", name="Try an example").click()
    page.get_by_role("button", name="Read this image").click()
    expect(page.locator(".verdict h2")).to_be_focused()
    expect(page.locator(".meta")).to_contain_text("Example: melanoma")


@pytest.mark.long
def test_on_a_phone_the_answer_comes_into_view(watched: Open, real_address: str) -> None:
    page = watched(real_address, viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    expect(page.get_by_text("Choose or take a picture")).to_be_visible()
    page.get_by_role("button", name="Try an example").tap()
    page.get_by_role("button", name="Read this image").tap()
    expect(page.locator(".verdict h2")).to_be_in_viewport(ratio=1)
    expect(page.locator(".advice")).to_be_in_viewport(ratio=1)


def test_several_images_are_read_and_two_compared(watched: Open, address: str, pictures: Pictures) -> None:
    page = watched(address)
    read(page, pictures["red"], pictures["green"], pictures["blue"])
    assert [t.strip() for t in page.locator(".thumb span").all_inner_texts()] == ["MEL", "BKL", "?"]
    page.get_by_role("button", name="Compare two").click()
    expect(page.get_by_role("heading", name="Compare two images")).to_be_focused()
    assert page.locator(".pair h3").all_inner_texts() == ["Mel 93 %", "Bkl 93 %"]
    widths = [bar.bounding_box()["width"] for bar in page.locator(".bars.wide tbody tr").first.locator(".bar").all()]
    assert len(widths) == 2 and min(widths) > 100, "each photograph has its own bars"
    page.locator("#compare-1").select_option("0")
    assert page.locator(".pair h3").all_inner_texts() == ["Mel 93 %", "Mel 93 %"]
    assert set(page.locator(".change").all_inner_texts()) == {"±0 pts"}
    page.locator("#compare-1").select_option("2")
    assert set(page.locator(".change").all_inner_texts()) == {"–"}, "what was rejected has no probabilities"
    page.get_by_role("button", name="Back to the result").click()
    expect(page.locator(".verdict h2")).to_be_visible()


@pytest.mark.long
def test_while_images_are_read_no_second_reading_starts(watched: Open, address: str, pictures: Pictures) -> None:
    page = watched(address)
    page.evaluate(
        """() => { const send = window.fetch; window.sent = 0;
        const go = new Promise((resolve) => { window.go = resolve; });
        window.fetch = async (path, options) => {
          if (path.includes("/predictions")) { window.sent += 1; await go; }
          return send(path, options); }; }"""
    )
    page.set_input_files("#file", [str(pictures["red"]), str(pictures["green"])])
    page.get_by_role("button", name="Read all 2 images").click()
    page.locator(".thumb").nth(1).click()
    expect(page.locator("button.primary")).to_be_disabled()
    page.evaluate("window.go()")
    expect(page.locator(".verdict h2")).to_contain_text("Mel ")
    assert page.evaluate("window.sent") == 2


def test_an_image_is_framed_by_keyboard_and_what_is_framed_is_what_is_read(
    watched: Open, address: str, pictures: Pictures
) -> None:
    page = watched(address)
    page.set_input_files("#file", str(pictures["wide"]))
    page.get_by_label("Image in its frame").focus()
    for _ in range(15):
        page.keyboard.press("ArrowLeft")
    page.get_by_role("button", name="Read this image").click()
    expect(page.locator(".verdict h2")).to_contain_text("Mel ")
    page.get_by_role("button", name="Adjust frame").click()
    page.get_by_role("button", name="Turn right").click()
    page.get_by_role("button", name="Turn right").click()
    page.get_by_label("Image in its frame").focus()
    for _ in range(15):
        page.keyboard.press("ArrowLeft")
    page.get_by_role("button", name="Read this image").click()
    expect(page.locator(".verdict h2")).to_have_text("The model cannot judge this picture")


@pytest.mark.long
def test_an_image_is_framed_by_mouse(watched: Open, address: str, pictures: Pictures) -> None:
    page = watched(address)
    page.set_input_files("#file", str(pictures["wide"]))
    box = page.get_by_label("Image in its frame").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 40, box["y"] + 200)
    page.mouse.down()
    page.mouse.move(box["x"] + 440, box["y"] + 200, steps=4)
    page.mouse.up()
    page.mouse.wheel(0, -300)
    assert float(page.get_by_label("Zoom", exact=True).input_value()) > 1.5
    page.get_by_role("button", name="Read this image").click()
    expect(page.locator(".verdict h2")).to_contain_text("Mel ")


@pytest.mark.long
def test_an_image_is_pasted(watched: Open, address: str, pictures: Pictures) -> None:
    page = watched(address)
    page.evaluate(
        """bytes => { const data = new DataTransfer();
        data.items.add(new File([new Uint8Array(bytes)], "image.png", { type: "image/png" }));
        dispatchEvent(Object.assign(new ClipboardEvent("paste", { clipboardData: data }))); }""",
        list(pictures["red"].read_bytes()),
    )
    page.get_by_role("button", name="Read this image").click()
    expect(page.locator(".meta")).to_contain_text("Pasted image 1")


@pytest.mark.long
def test_an_image_is_dropped(watched: Open, address: str, pictures: Pictures) -> None:
    page = watched(address)
    data = page.evaluate_handle(
        """bytes => { const data = new DataTransfer();
        data.items.add(new File([new Uint8Array(bytes)], "red.png", { type: "image/png" })); return data; }""",
        list(pictures["red"].read_bytes()),
    )
    page.dispatch_event(".well", "drop", {"dataTransfer": data})
    expect(page.get_by_role("heading", name="Frame the lesion")).to_be_visible()


@pytest.mark.long
def test_a_picture_is_taken_with_the_camera(watched: Open, address: str) -> None:
    page = watched(address)
    page.get_by_role("button", name="Use the camera").click()
    page.locator("dialog button.primary:enabled").click()
    page.get_by_role("button", name="Read this image").click()
    expect(page.locator(".verdict h2")).to_contain_text("Bkl")  # Chromium's fake camera is green
    expect(page.locator(".meta")).to_contain_text("Camera picture 1")


@pytest.mark.long
def test_without_a_camera_the_page_says_what_to_do(watched: Open, address: str) -> None:
    page = watched(address)
    page.evaluate(
        """() => { navigator.mediaDevices.getUserMedia =
        () => Promise.reject(new DOMException("no", "NotAllowedError")); }"""
    )
    page.get_by_role("button", name="Use the camera").click()
    expect(page.get_by_text("Allow it in the browser’s settings, or choose a file.")).to_be_visible()
    expect(page.get_by_role("button", name="Take picture")).to_be_disabled()


@pytest.mark.long
def test_a_busy_server_is_asked_again(watched: Open, address: str, pictures: Pictures) -> None:
    page = watched(address, tolerate="429")
    asked = []

    def busy_once(route: Route) -> None:
        asked.append(route.request.url)
        if len(asked) > 1:
            route.fallback()
            return
        route.fulfill(status=429, headers={"Retry-After": "1"}, content_type="application/problem+json", body="{}")

    page.route("**/api/v1/predictions", busy_once)
    read(page, pictures["red"])
    expect(page.locator(".verdict h2")).to_contain_text("Mel ")
    assert len(asked) == 2


@pytest.mark.long
def test_a_server_that_is_gone_is_named_and_can_be_tried_again(watched: Open, address: str, pictures: Pictures) -> None:
    page = watched(address, tolerate="ERR_FAILED")
    page.route("**/api/v1/predictions", lambda route: route.abort())
    read(page, pictures["red"])
    expect(page.get_by_text("The server does not answer.")).to_be_visible()
    page.unroute("**/api/v1/predictions")
    page.get_by_role("button", name="Try again").click()
    expect(page.locator(".verdict h2")).to_contain_text("Mel ")


def test_the_history_stays_in_the_browser_and_can_be_wiped(watched: Open, address: str, pictures: Pictures) -> None:
    page = watched(address)
    read(page, pictures["red"])
    page.reload()
    page.wait_for_selector(".well")
    page.get_by_role("button", name="History").click()
    expect(page.locator(".readings strong")).to_have_text("Mel")
    expect(page.locator(".readings li")).to_contain_text("Refer to a specialist")
    page.get_by_role("button", name="Open: red.png").click()
    expect(page.locator(".verdict h2")).to_contain_text("Mel ")
    heat_shown(page, "MEL")
    page.get_by_role("button", name="History").click()
    page.get_by_role("button", name="Delete all", exact=True).click()
    page.get_by_role("button", name="Yes, delete all").click()
    expect(page.get_by_text("No results yet.")).to_be_visible()
    page.reload()
    page.get_by_role("button", name="History").click()
    expect(page.get_by_text("No results yet.")).to_be_visible()


@pytest.mark.long
def test_a_model_without_a_malignant_class_says_so(watched: Open, pictures: Pictures, tmp_path: Path) -> None:
    """It has no advice on referral, and its server was started with a case mix of its own."""
    file = tmp_path / "clinic.csv"
    file.write_text("code,share\nRED,5\nGREEN,3\nBLUE,2\n")
    plain = Predictor(tiny.write(tmp_path / "plain"), case_mix=str(file))
    with live.in_thread(plain) as port:
        page = watched(f"http://127.0.0.1:{port}")
        read(page, pictures["red"])
        expect(page.locator(".advice.not_assessed .head")).to_have_text("Referral not assessed")
        expect(page.locator(".advice")).to_contain_text("the model has no malignant class")
        expect(page.locator(".mix")).to_contain_text("if the diagnoses were as common as in clinic.csv")
        page.get_by_role("button", name="Change how common each diagnosis is").click()
        expect(page.get_by_label("As this server is set: clinic.csv")).to_be_checked()
        page.get_by_label("All equally common").check()
        page.get_by_role("button", name="Use this").click()
        expect(page.locator(".mix")).to_contain_text("if all three diagnoses were equally common")


def test_an_answer_of_an_older_version_is_asked_for_again(watched: Open, address: str, pictures: Pictures) -> None:
    page = watched(address)
    read(page, pictures["red"])
    old = {
        "schema": "dermlens/prediction/1",
        "status": "uncertain",
        "diagnosis": None,
        "probabilities": {"MEL": 0.5, "NV": 0.5},
        "decision_rule": "prior_adjusted",
        "reasons": [],
    }
    page.evaluate(
        """answer => new Promise((done) => { const opening = indexedDB.open("dermlens", 1);
        opening.onsuccess = () => {
          const store = opening.result.transaction("readings", "readwrite").objectStore("readings");
          store.getAll().onsuccess = ({ target: { result: [entry] } }) => {
            store.put({ ...entry, answer }).onsuccess = () => { opening.result.close(); done(); }; }; }; })""",
        old,
    )
    page.reload()
    page.wait_for_selector(".well")
    page.get_by_role("button", name="History").click()
    expect(page.locator(".readings strong")).to_have_text("Read by an older version")
    page.get_by_role("button", name="Open: red.png").click()
    page.get_by_role("button", name="Read this image").click()
    expect(page.locator(".verdict h2")).to_contain_text("Mel ")
    page.get_by_role("button", name="History").click()
    expect(page.locator(".readings strong")).to_have_text("Mel")


@pytest.mark.long
def test_without_a_history_nothing_is_kept(watched: Open, address: str, pictures: Pictures) -> None:
    page = watched(address)
    page.get_by_role("button", name="History").click()
    page.get_by_label("Store a history in this browser").uncheck()
    page.get_by_role("button", name="Close").click()
    read(page, pictures["red"])
    page.get_by_role("button", name="History").click()
    expect(page.get_by_text("No results yet.")).to_be_visible()


@pytest.mark.long
def test_a_reading_is_saved_as_json(watched: Open, address: str, pictures: Pictures) -> None:
    page = watched(address)
    read(page, pictures["red"])
    with page.expect_download() as download:
        page.get_by_role("button", name="Save as JSON").click()
    saved = json.loads(Path(download.value.path()).read_text(encoding="utf-8"))
    assert saved["prediction"]["diagnosis"]["code"] == "MEL" and saved["model"]["name"] == "tiny"
    assert "not a diagnosis" in saved["disclaimer"]


@pytest.mark.long
def test_a_server_with_a_token_asks_for_it(watched: Open, model: Path, pictures: Pictures) -> None:
    with live.in_thread(Predictor(model), token="a-long-token") as port:
        page = watched(f"http://127.0.0.1:{port}", tolerate="401")
        page.get_by_role("textbox", name="Token").fill("wrong-token")
        page.get_by_role("button", name="Continue").click()
        expect(page.get_by_text("Wrong token.")).to_be_visible()
        page.get_by_role("textbox", name="Token").fill("a-long-token")
        page.get_by_role("button", name="Continue").click()
        read(page, pictures["red"])
        expect(page.locator(".verdict h2")).to_contain_text("Mel ")


def test_the_whole_way_by_keyboard_alone(watched: Open, address: str, pictures: Pictures) -> None:
    page = watched(address)
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the images")).to_be_focused()
    page.keyboard.press("Enter")
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Tab")
        expect(page.get_by_role("button", name="Choose images")).to_be_focused()
        page.keyboard.press("Enter")
    chooser.value.set_files(str(pictures["red"]))
    expect(page.get_by_role("button", name="Read this image")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator(".verdict h2")).to_be_focused()


@pytest.mark.long
def test_who_wants_no_motion_gets_none(watched: Open, address: str) -> None:
    page = watched(address, reduced_motion="reduce")
    moving = """() => [...document.querySelectorAll("*")].filter(
        (e) => parseFloat(getComputedStyle(e).transitionDuration) > 0).length"""
    assert page.evaluate(moving) == 0
    page.emulate_media(reduced_motion="no-preference")
    assert page.evaluate(moving) > 0


@pytest.mark.long
@pytest.mark.parametrize(("width", "height"), [(320, 640), (640, 400)], ids=["phone", "zoom-200"])
def test_nothing_has_to_be_scrolled_sideways(
    watched: Open, address: str, pictures: Pictures, width: int, height: int
) -> None:
    page = watched(address, viewport={"width": width, "height": height})
    wide = "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert page.evaluate(wide) <= 0
    read(page, pictures["red"], pictures["green"])
    assert page.evaluate(wide) <= 0
    page.get_by_role("button", name="Compare two").click()
    assert page.evaluate(wide) <= 0
