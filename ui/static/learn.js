// The picture of W0, B and A in their true proportions. Gradio runs this text as a function of (element, trigger,
// props, watch) when it mounts the component; sliders, numbers and picture stay in the browser.

const box = element.querySelector(".learn-picture");
const picture = box.querySelector("svg");
const hint = box.querySelector(".learn-hint");
const SIZES = [100, 200, 300, 400, 500, 768, 1024, 2048, 3072, 4096, 5120, 8192, 11008, 14336]; // those of real layers
const START = { rows: 500, columns: 100 };
const [WIDTH, HEIGHT] = [560, 330];
const GAP = 10; // between B, A and their product
const MIDDLE = 150; // between W0 and B: room for the plus and the strength
const CAPTION = 24; // over and under the matrices
const SIDES = 60; // left free, for captions that are wider than their matrices
const THINNEST = 3; // px: a rank of 1 must still be seen

const inputs = Object.fromEntries([...box.querySelectorAll("input")].map((input) => [input.name, input]));
for (const [name, size] of Object.entries(START)) {
    Object.assign(inputs[name], { min: 0, max: SIZES.length - 1, value: SIZES.indexOf(size) });
}

const say = (number) => number.toLocaleString("en-US");
const short = (number, digits) => number.toLocaleString("en-US", { maximumSignificantDigits: digits });

function add(name, attributes, text) {
    const node = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    if (text) node.textContent = text;
    picture.append(node);
}

function matrix(kind, x, y, width, height) {
    add("rect", { class: "learn-" + kind, x, y, width, height, rx: Math.min(3, width / 2, height / 2) });
}

function draw({ rank, alpha, rows, columns }) {
    const scale = Math.min(
        (HEIGHT - 2 * CAPTION - GAP - THINNEST) / (rows + rank),
        (WIDTH - MIDDLE - GAP - SIDES) / (2 * columns + rank),
    );
    const [high, wide, thin] = [rows, columns, rank].map((size) => Math.max(THINNEST, size * scale));
    const left = Math.max(0, (WIDTH - 2 * wide - thin - MIDDLE - GAP) / 2);
    const top = (HEIGHT + thin + GAP - high) / 2; // of W0, B and the product
    const b = left + wide + MIDDLE;
    const product = b + thin + GAP;
    const middle = top + high / 2;
    const under = top + high + 20;
    picture.replaceChildren();
    matrix("frozen", left, top, wide, high);
    matrix("trained", b, top, thin, high);
    matrix("trained", product, top - GAP - thin, wide, thin);
    matrix("product", product, top, wide, high);
    picture.style.setProperty("--strength", `${Math.round(100 * (0.1 + 0.5 * (1 - Math.exp(-alpha / rank / 3))))}%`);
    add("text", { x: left + wide + 20, y: middle + 8, class: "learn-sign" }, "+");
    add("text", { x: left + wide + 84, y: middle + 6, class: "learn-strength" }, `${short(alpha / rank, 3)} ×`);
    const [W, P] = [left + wide / 2, product + wide / 2];
    add("text", { x: Math.max(W, 62), y: under }, `W₀ ${rows} × ${columns}`);
    add("text", { x: b + thin, y: under, class: "learn-to-left" }, `B ${rows} × ${rank}`);
    add("text", { x: product, y: under, class: "learn-to-right" }, `B A ${rows} × ${columns}`);
    add("text", { x: P, y: top - GAP - thin - 8 }, `A ${rank} × ${columns}`);
}

function explain({ rank, rows, columns }, frozen, trained) {
    const most = Math.min(rows, columns);
    if (rank > most) {
        return `A matrix of ${say(rows)} × ${say(columns)} has at most ${most} directions: a higher rank adds none.`;
    }
    if (trained >= frozen) return "B and A hold as many numbers as W₀ now: nothing is saved.";
    return `${short(frozen / trained, 3)} times fewer numbers to train.`;
}

function show() {
    const number = (name) => Number(inputs[name].value);
    const now = {
        rank: number("rank"), alpha: number("alpha"), rows: SIZES[number("rows")], columns: SIZES[number("columns")],
    };
    for (const [name, input] of Object.entries(inputs)) {
        input.previousElementSibling.textContent = say(now[name]);
        input.setAttribute("aria-valuetext", say(now[name]));
    }
    const { rank, alpha, rows, columns } = now;
    const frozen = rows * columns;
    const trained = rows * rank + rank * columns;
    const numbers = {
        frozen: `${say(rows)} × ${say(columns)} = ${say(frozen)}`,
        trained: `${say(rows)} × ${rank} + ${rank} × ${say(columns)} = ${say(trained)}`,
        share: `${short((100 * trained) / frozen, 3)} %`,
        scale: `${alpha} / ${rank} = ${short(alpha / rank, 3)}`,
    };
    for (const [name, text] of Object.entries(numbers)) box.querySelector(`[data-number=${name}]`).textContent = text;
    hint.textContent = explain(now, frozen, trained);
    const label = `W0 with ${say(frozen)} frozen numbers; B and A with ${say(trained)} trained ones`;
    picture.setAttribute("aria-label", label);
    draw(now);
}

box.addEventListener("input", show);
show();
