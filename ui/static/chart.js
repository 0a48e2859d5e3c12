// The live training chart. Gradio runs this text as a function of (element, trigger, props, watch) whenever it mounts
// the component; props.body and props.end, the curves and what follows on them, come from ui/chart.py, and
// props.plotly_url says where this server keeps Plotly.

const box = element.querySelector(".graft-chart");
const plot = box.querySelector(".plot");
const legend = box.querySelector(".legend");
const notice = box.querySelector(".notice");
const CLICK_SETTLES = 400; // ms: Plotly waits 300 to tell a click from a double click
const MARKER_REACH = 14; // px around a checkpoint's marker that count as the marker
const PATIENCE = 500; // ms for the other half of an update, which Gradio hands over by itself
const NARROW = 480; // px: below this the curves need the room more than the axis titles do

let drawnRun = null; // the run whose curves are on the screen
let hidden = new Set(); // names of the curves that the reader has switched off
let waiting = "Loading the chart …"; // what stands where the curves would, until Plotly is there
let asking = null; // the timer after which the server is asked for the whole curves
let held = false; // the reader is dragging or clicking: redrawing now would take the mouse from Plotly

// One script for the whole page, however many charts ask for it.
function loadPlotly() {
    window.graftPlotly ??= new Promise((resolve, reject) => {
        const script = document.createElement("script");
        script.src = (window.gradio_config?.root ?? "") + props.plotly_url;
        script.onload = () => resolve(window.Plotly);
        script.onerror = () => {
            delete window.graftPlotly; // so that the next mount tries again
            reject(new Error("plotly.min.js did not load"));
        };
        document.head.append(script);
    });
    return window.graftPlotly;
}

// The end takes the place of all that the body has from its first step on, so that a body that is older, because a
// browser missed an answer, is still drawn right.
function joined(body, end) {
    if (!body?.training) return body;
    const join = (name) => {
        const before = body[name].step.filter((step) => step < end.from).length;
        const columns = Object.keys(body[name]);
        return Object.fromEntries(columns.map((key) => [key, [...body[name][key].slice(0, before), ...end[name][key]]]));
    };
    return { ...end, training: join("training"), evaluation: join("evaluation") };
}

// A browser may lack a body that the server has sent: it missed an answer, or the chart was not on the page yet.
function fits() {
    return props.body?.version === props.end?.version;
}

function askForAll() {
    asking = null;
    if (!fits()) trigger("stale");
}

function colours() {
    const style = getComputedStyle(box);
    const names = "curve faint evaluation rate marker text grid panel panel-edge panel-text".split(" ");
    return Object.fromEntries(names.map((name) => [name, style.getPropertyValue("--" + name).trim()]));
}

function curve(name, x, y, more) {
    // All five always, even the empty ones: an axis without a curve would vanish and take the other axis with it.
    return {
        type: "scatter", mode: "lines", uid: name, name, x, y,
        visible: hidden.has(name) ? "legendonly" : true, hovertemplate: "%{y:.4f}", ...more,
    };
}

function curves(value, colour) {
    const { training, evaluation, checkpoints } = value;
    const saved = checkpoints.step.map((step, index) => {
        const part = (name, number) => (number === null ? "" : `, ${name} ${number.toFixed(3)}`);
        const judged = checkpoints.evaluation[index];
        return `step ${step}` + part("loss", checkpoints.loss[index]) + part("evaluation", judged) + " – click to chat";
    });
    return [
        curve("Learning rate", training.step, training.rate, {
            yaxis: "y2", hovertemplate: "%{y:.2~e}", legendrank: 5, // the hover box lists the curves by this rank
            line: { color: colour.rate, width: 1.5, dash: "dot" },
        }),
        curve("Training", training.step, training.loss, {
            legendrank: 2, line: { color: colour.faint, width: 1 },
        }),
        curve("Smoothed", training.step, training.smoothed, {
            legendrank: 1, line: { color: colour.curve, width: 2.5 },
        }),
        curve("Evaluation", evaluation.step, evaluation.loss, {
            mode: "lines+markers", legendrank: 3, hovertemplate: "%{y:.4f} (step %{x})",
            line: { color: colour.evaluation, width: 2 }, marker: { color: colour.evaluation, size: 6 },
        }),
        curve("Checkpoints", checkpoints.step, checkpoints.height, {
            mode: "markers", legendrank: 4, cliponaxis: false, text: saved, hovertemplate: "%{text}",
            marker: { symbol: "diamond", color: colour.marker, size: 10, line: { color: colour.curve, width: 2 } },
        }),
    ];
}

// Plotly's own legend takes half of a narrow chart and cannot be used from the keyboard.
function drawLegend(value) {
    const { training, evaluation, checkpoints } = value;
    const entries = [
        ["Smoothed", training.smoothed], ["Training", training.loss], ["Evaluation", evaluation.loss],
        ["Checkpoints", checkpoints.height], ["Learning rate", training.rate],
    ];
    for (const [name, numbers] of entries) {
        const entry = [...legend.children].find((child) => child.textContent === name) ?? addEntry(name);
        entry.hidden = numbers.every((number) => number === null);
        entry.setAttribute("aria-pressed", String(!hidden.has(name)));
    }
}

function addEntry(name) {
    const entry = document.createElement("button");
    const swatch = document.createElement("i");
    swatch.className = name.toLowerCase().replace(" ", "-");
    entry.type = "button";
    entry.title = "Show or hide this curve";
    entry.append(swatch, name);
    entry.addEventListener("click", () => {
        if (!hidden.delete(name)) hidden.add(name);
        draw();
    });
    legend.append(entry);
    return entry;
}

function layout(value, colour) {
    const margin = value.total * 0.015; // room for a marker at either end
    const narrow = plot.clientWidth < NARROW;
    const axis = { gridcolor: colour.grid, zeroline: false, ticks: "", automargin: true, tickmode: "auto" };
    const title = (text) => ({ text: narrow ? "" : text, standoff: 10, font: { size: 12 } });
    return {
        uirevision: "run " + value.run,
        width: plot.clientWidth,
        height: plot.clientHeight,
        margin: narrow ? { l: 32, r: 40, t: 28, b: 24 } : { l: 52, r: 64, t: 28, b: 40 },
        paper_bgcolor: "rgba(0,0,0,0)",
        plot_bgcolor: "rgba(0,0,0,0)",
        font: { family: getComputedStyle(box).fontFamily, size: 12, color: colour.text },
        hovermode: "x unified",
        hoverlabel: {
            bgcolor: colour.panel, bordercolor: colour["panel-edge"], font: { size: 12, color: colour["panel-text"] },
        },
        showlegend: false,
        hoverdistance: Math.max(10, plot.clientWidth / value.total), // px: the next step, however few there are
        modebar: { bgcolor: "rgba(0,0,0,0)", color: colour.rate, activecolor: colour.text },
        xaxis: {
            ...axis, range: [-margin, value.total + margin], title: title("step"), tickformat: ",d",
            unifiedhovertitle: { text: "step %{x}" }, showspikes: true, spikemode: "across",
            spikecolor: colour.rate, spikethickness: 1, spikedash: "dot",
        },
        yaxis: { ...axis, title: title("loss"), overlaying: "y2", nticks: 7 },
        yaxis2: {
            ...axis, visible: value.training.rate.length > 0, side: "right", title: title("learning rate"),
            showgrid: false, rangemode: "tozero", fixedrange: true, nticks: 5,
            tickformat: ".1~e", labelalias: { "0e+0": "0" }, tickfont: { color: colour.rate },
        },
    };
}

// Plotly's own button would leave out the legend and keep the transparent background, unreadable in the dark theme.
function downloadPng() {
    const background = colours().panel;
    const layout = {
        ...plot.layout, paper_bgcolor: background, plot_bgcolor: background,
        font: { ...plot.layout.font, family: "sans-serif" }, // an image cannot load the page's own font
        margin: { ...plot.layout.margin, t: 48 },
        showlegend: true, legend: { orientation: "h", y: 1.02, yanchor: "bottom" },
    };
    const data = plot.data.map((one) => ({ ...one, showlegend: one.visible === true && one.x.length > 0 }));
    const size = { scale: 2, width: plot.clientWidth, height: plot.clientHeight };
    const filename = "training-" + drawnRun.replace(/[^\w.-]+/g, "_");
    window.Plotly.downloadImage({ data, layout }, { format: "png", filename, ...size });
}

function settings() {
    const name = "Save as PNG";
    const download = { name, title: name, icon: window.Plotly.Icons.camera, click: downloadPng };
    return {
        displaylogo: false, displayModeBar: "hover", doubleClick: "reset",
        modeBarButtons: [["resetScale2d", download]],
    };
}

function onClick({ points, event }) {
    const point = points.find(({ data }) => data.uid === "Checkpoints");
    if (!point) return;
    // The unified hover reports every curve at this step; only a click on the marker itself is meant for it.
    const frame = box.getBoundingClientRect(); // what Plotly's bbox counts from: the positioned element around the plot
    const x = event.clientX - frame.left - (point.bbox.x0 + point.bbox.x1) / 2;
    const y = event.clientY - frame.top - (point.bbox.y0 + point.bbox.y1) / 2;
    if (Math.hypot(x, y) <= MARKER_REACH) trigger("click", { step: point.x });
}

function describe(value) {
    const last = (list) => list.findLast((number) => number !== null)?.toFixed(3) ?? "none yet";
    box.setAttribute("role", "figure");
    box.setAttribute("aria-label",
        `Training curves of ${value.run}: step ${value.step} of ${value.total}, smoothed loss ` +
        `${last(value.training.smoothed)}, evaluation loss ${last(value.evaluation.loss)}`);
}

function say(text) {
    notice.textContent = text;
    notice.hidden = !text;
    legend.hidden = Boolean(text);
    plot.style.visibility = text ? "hidden" : "visible";
}

function draw() {
    if (!box.isConnected) { // the page has put another element in its place, whose own script draws now
        life.abort();
        dark.disconnect();
        size.disconnect();
        return;
    }
    if (!fits()) {
        asking ??= setTimeout(askForAll, PATIENCE);
        if (!props.body?.training || props.body.run !== props.end?.run) return;
    }
    const value = joined(props.body, props.end);
    if (!value?.training) {
        if (drawnRun !== null) window.Plotly.purge(plot);
        drawnRun = null;
        box.removeAttribute("aria-label");
        say(value?.text ?? "");
        return;
    }
    if (!window.Plotly) {
        say(waiting);
        return;
    }
    // Each of these ends with an event that draws again; a hidden chart has no width to be drawn in.
    if (held || document.hidden || !plot.clientWidth) return;
    if (value.run !== drawnRun) hidden = new Set();
    say("");
    drawLegend(value); // before the plot, which gets the height that the legend leaves
    describe(value);
    const colour = colours();
    const figure = [plot, curves(value, colour), layout(value, colour), settings()];
    if (value.run === drawnRun) {
        window.Plotly.react(...figure);
    } else {
        drawnRun = value.run;
        window.Plotly.newPlot(...figure); // forgets zoom, hidden curves and listeners of the run before
        plot.on("plotly_click", onClick);
    }
}

function release() {
    if (!held) return;
    setTimeout(() => {
        held = false;
        draw();
    }, CLICK_SETTLES);
}

const dark = new MutationObserver(draw);
const size = new ResizeObserver(() => requestAnimationFrame(draw));
const life = new AbortController();
const { signal } = life; // ends the listeners on the document and the window

watch(["body", "end"], draw);
dark.observe(document.body, { attributes: true, attributeFilter: ["class"] });
size.observe(box);
document.addEventListener("visibilitychange", draw, { signal });
plot.addEventListener("pointerdown", () => { held = true; }, { signal });
window.addEventListener("pointerup", release, { signal });
window.addEventListener("pointercancel", release, { signal });
loadPlotly().catch(() => { waiting = "The chart could not be loaded. Please reload the page."; }).then(draw);
draw();
