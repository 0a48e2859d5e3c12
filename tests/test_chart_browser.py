"""The live chart in a real browser: what the reader did to it survives the data that streams in."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import gradio as gr
import pytest
from playwright.sync_api import Page, Route

from training.events import CheckpointSaved, Evaluation, Started, Step
from training.history import History
from ui.chart import Curves, LiveCurves, curves_update, live_chart, no_curves, static_paths

if TYPE_CHECKING:  # at run time another package called `tests` could be found in its place
    from tests.conftest import Visit

pytestmark = pytest.mark.browser

TOTAL = 400
WAIT = 60_000  # ms: a busy computer takes long to read the 5 MB of Plotly
PLOT = "() => document.querySelector('#first .plot')"
HOSTILE = 'a"\'><img src=x onerror="window.broken=1"><script>window.broken=1</script>${1}{{run}}'


@dataclass
class Feed:
    """What the page is shown; a test turns it by hand, the page's timer lets it grow."""

    run: str = "first run"
    text: str | None = None
    running: bool = True
    history: History = field(default_factory=History)
    curves: LiveCurves = field(default_factory=lambda: LiveCurves(""))
    bodies: int = 0  # how often a whole body was sent

    def restart(self, run: str = "first run", steps: int = 30) -> None:
        self.run, self.text, self.running, self.history, self.curves = run, None, True, History(), LiveCurves(run)
        self.history.add(Started(from_step=0, total_steps=TOTAL, epochs=1))
        for _ in range(steps):
            self.grow()

    def grow(self) -> None:
        step = self.history.step + 1
        loss = 1 + math.exp(-step / 50) + 0.1 * math.sin(step)
        self.history.add(
            Step(step=step, epoch=1, loss=loss, learning_rate=2e-4, grad_norm=1, tokens=9, seconds=0.1, memory=1)
        )
        if step % 10 == 0:
            self.history.add(Evaluation(step=step, loss=loss + 0.2))
        if step % 20 == 0:
            self.history.add(CheckpointSaved(step=step, loss=loss, evaluation_loss=None))

    def value(self) -> Curves:
        if self.text is not None:
            return no_curves(self.text)
        if self.running and self.history.step < TOTAL:
            self.grow()
        return self.curves.update(self.history, range(TOTAL + 1))

    def updates(self, shown: int) -> list[Any]:
        """For both charts, and what a page shows then."""
        curves = self.value()
        self.bodies += curves.version != shown
        return [*[curves_update(curves, shown)] * 2, curves.version]


def _clicked(event: gr.EventData) -> str:
    return f"step {event.step}"


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[str, Feed]]:
    """The address of a page with one chart in view and one in a tab behind, and what feeds both."""
    feed = Feed()
    gr.set_static_paths(static_paths())
    with gr.Blocks() as page:
        with gr.Tab("Front"):
            first = live_chart()
            clicked = gr.Textbox(label="clicked", elem_id="clicked")
            hide, show = gr.Button("Take away"), gr.Button("Bring back")
        with gr.Tab("Behind"):
            second = live_chart()
        first.elem_id, second.elem_id = "first", "second"
        first.click(_clicked, None, clicked)
        hide.click(lambda: gr.HTML(visible=False), None, first)
        show.click(lambda: gr.HTML(visible=True), None, first)
        shown = gr.State(0)
        for chart in (first, second):
            chart.stale(lambda: feed.updates(0), None, [first, second, shown], show_progress="hidden")
        gr.Timer(0.3).tick(feed.updates, shown, [first, second, shown], show_progress="hidden")
    _, address, _ = page.launch(server_name="127.0.0.1", prevent_thread_lock=True, quiet=True)
    yield address, feed
    page.close()


@pytest.fixture
def feed(served: tuple[str, Feed]) -> Feed:
    served[1].restart()
    return served[1]


@pytest.fixture
def chart(served: tuple[str, Feed], feed: Feed, visit: Callable[..., Visit]) -> Iterator[Visit]:
    """A visit to the page, once the curves are drawn; in the end nothing may have gone wrong in it."""
    result = visit(served[0], viewport={"width": 1440, "height": 900})
    _wait_for_curves(result.page)
    yield result
    result.assert_clean()


def _wait_for_curves(page: Page) -> None:
    page.wait_for_selector("#first .plot .scatterlayer .point", timeout=WAIT)


def _ask(page: Page, expression: str) -> Any:
    """The value of an expression about `plot`, the chart's element as Plotly keeps it."""
    return page.evaluate(f"() => {{ const plot = ({PLOT})(); return {expression}; }}")


def _points(page: Page) -> int:
    return _ask(page, "plot.data.find(curve => curve.name === 'Training').x.length")


def _wait_for_updates(page: Page, count: int) -> None:
    wanted = _points(page) + count
    page.wait_for_function(
        f"() => ({PLOT})().data.find(curve => curve.name === 'Training').x.length >= {wanted}", timeout=WAIT
    )


def _range(page: Page) -> list[float]:
    return _ask(page, "plot.layout.xaxis.range")


def _zoom(page: Page) -> None:
    """Draw a box with the mouse over the left part of the curves."""
    frame = page.locator("#first .plot").bounding_box()
    assert frame is not None
    page.mouse.move(frame["x"] + 90, frame["y"] + 60)
    page.mouse.down()
    page.mouse.move(frame["x"] + 200, frame["y"] + 120, steps=5)
    page.mouse.move(frame["x"] + 320, frame["y"] + 200, steps=5)
    page.mouse.up()


def test_curves_grow_on_an_axis_that_shows_the_whole_run(chart: Visit) -> None:
    before = _points(chart.page)
    _wait_for_updates(chart.page, 3)
    assert _points(chart.page) >= before + 3
    low, high = _range(chart.page)
    assert low <= 0
    assert TOTAL <= high < TOTAL * 1.05
    assert _ask(chart.page, "plot.data.map(curve => curve.name)") == [
        "Learning rate", "Training", "Smoothed", "Evaluation", "Checkpoints",
    ]  # fmt: skip


def test_of_curves_that_grow_the_end_alone_is_sent_and_a_run_that_goes_back_is_drawn_right(
    chart: Visit, feed: Feed
) -> None:
    before = feed.bodies
    _wait_for_updates(chart.page, 4)
    assert feed.bodies == before
    feed.history.add(Started(from_step=20, total_steps=TOTAL, epochs=1))
    chart.page.wait_for_function(f"() => ({PLOT})().data[1].x.length < 30", timeout=WAIT)
    _wait_for_updates(chart.page, 3)
    steps = _ask(chart.page, "plot.data[1].x")
    assert steps == list(range(1, len(steps) + 1))


def test_zoom_and_hidden_curves_survive_updates_until_another_run_is_shown(chart: Visit, feed: Feed) -> None:
    page = chart.page
    whole = _range(page)
    _zoom(page)
    page.get_by_role("button", name="Training").first.click()
    page.wait_for_function(f"() => ({PLOT})().layout.xaxis.range[1] < {TOTAL / 2}", timeout=WAIT)
    page.wait_for_selector("#first .legend button[aria-pressed=false]", timeout=WAIT)
    zoomed, heights = _range(page), _ask(page, "plot.layout.yaxis.range")
    _wait_for_updates(page, 4)
    assert _range(page) == zoomed
    assert _ask(page, "plot.layout.yaxis.range") == heights
    assert _ask(page, "plot.data.filter(curve => curve.visible !== true).map(curve => curve.name)") == ["Training"]

    feed.restart("second run")
    page.wait_for_function(f"() => ({PLOT})().layout.uirevision.includes('second run')", timeout=WAIT)
    assert _range(page) == whole
    assert _ask(page, "plot.data.every(curve => curve.visible === true)")
    assert page.locator("#first .legend button[aria-pressed=false]").count() == 0


def test_a_double_click_shows_the_whole_run_again(chart: Visit) -> None:
    page = chart.page
    whole = _range(page)
    _zoom(page)
    page.wait_for_function(f"() => ({PLOT})().layout.xaxis.range[1] < {TOTAL / 2}", timeout=WAIT)
    page.wait_for_timeout(500)  # else the end of the drag counts as the first of three clicks
    frame = page.locator("#first .plot").bounding_box()
    assert frame is not None
    page.mouse.dblclick(frame["x"] + 300, frame["y"] + 150)
    page.wait_for_function(f"() => ({PLOT})().layout.xaxis.range[1] > {TOTAL}", timeout=WAIT)
    _wait_for_updates(page, 2)
    assert _range(page) == whole


def test_colours_follow_the_theme_at_once(chart: Visit, feed: Feed) -> None:
    feed.running = False  # no new data: the theme alone must redraw
    chart.page.wait_for_timeout(700)
    colours = "[plot.data[2].line.color, plot.layout.font.color, plot.layout.hoverlabel.bgcolor]"
    chart.page.evaluate("() => document.body.classList.remove('dark')")
    chart.page.wait_for_timeout(300)
    light = _ask(chart.page, colours)
    chart.page.evaluate("() => document.body.classList.add('dark')")
    chart.page.wait_for_timeout(300)
    dark = _ask(chart.page, colours)
    assert all(one != other for one, other in zip(light, dark, strict=True))
    assert _ask(chart.page, "plot.layout.paper_bgcolor") == "rgba(0,0,0,0)"


def test_the_chart_is_as_wide_as_its_place(chart: Visit) -> None:
    for width in (800, 1440, 500):
        chart.page.set_viewport_size({"width": width, "height": 900})
        chart.page.wait_for_function(
            f"() => {{ const plot = ({PLOT})(); const svg = plot.querySelector('.main-svg');"
            " return Math.abs(svg.getBoundingClientRect().width - plot.clientWidth) < 1; }",
            timeout=WAIT,
        )
        assert _ask(chart.page, "plot.clientWidth") <= width
        assert _ask(chart.page, "plot.parentElement.clientHeight") == 340
        assert _ask(chart.page, "plot.offsetTop + plot.clientHeight") <= 340


def test_a_chart_in_a_tab_behind_is_drawn_when_it_is_shown(chart: Visit) -> None:
    chart.page.get_by_role("tab", name="Behind").click()
    chart.page.wait_for_selector("#second .plot .scatterlayer .point", timeout=WAIT)
    width = "() => document.querySelector('#second .main-svg').getBoundingClientRect().width"
    assert chart.page.evaluate(width) > 600
    chart.page.get_by_role("tab", name="Front").click()
    _wait_for_updates(chart.page, 2)


def test_a_chart_that_was_taken_away_comes_back_alive(chart: Visit) -> None:
    before = _points(chart.page)
    chart.page.get_by_role("button", name="Take away").click()
    chart.page.wait_for_selector("#first .plot", state="detached", timeout=WAIT)
    chart.page.get_by_role("button", name="Bring back").click()
    _wait_for_curves(chart.page)
    assert _points(chart.page) >= before
    _wait_for_updates(chart.page, 2)
    loaded = [url for url in chart.requests if "plotly.min.js" in url]
    assert len(loaded) == 1


def test_the_picture_is_named_after_the_run(chart: Visit, feed: Feed) -> None:
    feed.restart("my/../run")
    chart.page.wait_for_function(f"() => ({PLOT})().layout.uirevision.includes('my/')", timeout=WAIT)
    chart.page.locator("#first .plot").hover()
    chart.page.get_by_role("button", name="Learning rate").first.click()  # an axis without a curve breaks nothing
    with chart.page.expect_download(timeout=WAIT) as download:
        chart.page.locator("#first .modebar-btn[data-title='Save as PNG']").click()
    assert download.value.suggested_filename == "training-my_.._run.png"


def test_a_click_on_a_checkpoint_reports_its_step(chart: Visit, feed: Feed) -> None:
    page = chart.page
    feed.running = False
    page.wait_for_timeout(700)
    place = _ask(
        page,
        "(() => { const box = [...plot.querySelectorAll('.scatterlayer .trace')].at(-1)"
        ".querySelector('.point').getBoundingClientRect();"
        " return [box.x + box.width / 2, box.y + box.height / 2]; })()",
    )
    page.mouse.move(place[0] - 3, place[1])
    page.mouse.move(place[0], place[1], steps=3)
    page.wait_for_selector("#first .hoverlayer .legend", timeout=WAIT)
    page.mouse.click(place[0], place[1] + 60)  # below the marker: meant for nothing
    page.wait_for_timeout(1000)
    assert page.locator("#clicked textarea, #clicked input").first.input_value() == ""
    page.mouse.click(*place)
    page.wait_for_function(
        "() => document.querySelector('#clicked textarea, #clicked input').value === 'step 20'", timeout=WAIT
    )


def test_names_and_texts_are_never_markup(chart: Visit, feed: Feed) -> None:
    feed.restart(HOSTILE)
    chart.page.wait_for_function(f"() => ({PLOT})().layout.uirevision.includes('onerror')", timeout=WAIT)
    assert HOSTILE in (chart.page.locator("#first .graft-chart").get_attribute("aria-label") or "")
    feed.text = HOSTILE
    notice = chart.page.locator("#first .notice")
    notice.wait_for(state="visible", timeout=WAIT)
    assert notice.text_content() == HOSTILE
    assert chart.page.evaluate("() => window.broken") is None
    assert chart.page.locator("#first img").count() == 0
    feed.restart()
    _wait_for_curves(chart.page)


def test_data_that_is_there_before_plotly_waits_for_it(
    served: tuple[str, Feed], feed: Feed, visit: Callable[..., Visit]
) -> None:
    visited = visit("about:blank")
    waiting: list[Route] = []
    visited.page.route("**/plotly.min.js*", lambda route: waiting.append(route))
    visited.page.goto(served[0])
    notice = visited.page.locator("#first .notice")
    notice.get_by_text("Loading the chart").wait_for(timeout=WAIT)
    waiting[0].continue_()
    _wait_for_curves(visited.page)
    assert notice.is_hidden()
    assert visited.outside == []


def test_a_plotly_that_does_not_load_is_said(served: tuple[str, Feed], feed: Feed, visit: Callable[..., Visit]) -> None:
    visited = visit("about:blank")
    visited.page.route("**/plotly.min.js*", lambda route: route.abort())
    visited.page.goto(served[0])
    notice = visited.page.locator("#first .notice")
    notice.get_by_text("could not be loaded").wait_for(timeout=WAIT)
    seen = feed.history.step
    while feed.history.step < seen + 4:  # data that streams in does not take the sentence away
        visited.page.wait_for_timeout(100)
    assert "could not be loaded" in notice.inner_text()
