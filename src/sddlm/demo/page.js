"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const make = (tag, name, text) => {
  const node = document.createElement(tag);
  if (name) node.className = name;
  if (text !== undefined) node.textContent = text;
  return node;
};
const {takes, moments} = data, last = moments.length - 1, NAMES = "ab";
let sample = 0, moment = 0, timer = 0, picked = -1, pinned = false, pointer = "", views = [], panes = [];

// every moment of one sample of one take: tokens[f][l], settledFrom[l], changed[f], entropy[f]
function unfold(take, s) {
  const length = s.first.length, tokens = [Int32Array.from(s.first)], settledFrom = new Int32Array(length), changed = [0];
  s.changes.forEach((c, i) => {
    const row = tokens[i].slice();
    for (let k = 0; k < c.length; k += 2) { row[c[k]] = c[k + 1]; settledFrom[c[k]] = i + 1; }
    tokens.push(row); changed.push(c.length / 2);
  });
  const entropy = tokens.map((row) => {
    const counts = new Map(); let h = 0;
    for (const v of row) counts.set(v, (counts.get(v) || 0) + 1);
    for (const n of counts.values()) h -= n / length * Math.log(n / length);
    return Math.abs(h);
  });
  return {take, length, tokens, settledFrom, changed, entropy, known: new Set(s.known)};
}
const frameOf = (view) => view.take.at[moment];

function kind(view, l) {
  return view.known.has(l) ? "given" : frameOf(view) >= view.settledFrom[l] ? "settled" : "noise";
}
function shown(view, l) {  // a newline breaks the line only once it has settled
  const text = data.texts[view.tokens[frameOf(view)][l]];
  return kind(view, l) === "noise" ? text.replaceAll("\n", "↵") : text;
}
function join(view, row, l) {  // neighbours that are parts of one character: [its text, how many]
  if (!data.texts[row[l]].includes("\ufffd")) return null;
  for (let n = 2; n <= 4 && l + n <= view.length; n++) {
    const text = data.joins[row.slice(l, l + n).join()];
    if (text !== undefined) return [text, n];
  }
  return null;
}
function drawText(view, pane) {
  const f = frameOf(view), row = view.tokens[f], before = f ? view.tokens[f - 1] : row;
  for (let l = 0, part = 0; l < view.length; l++) {
    const whole = part ? null : join(view, row, l), span = pane.spans[l];
    const text = part ? "" : whole ? whole[0] : shown(view, l);
    const name = "tok " + kind(view, l) + (row[l] !== before[l] ? " fresh" : "") + (l === picked ? " picked" : "") + (part ? " part" : "") + (text[0] === "\n" ? " end" : "");
    if (span.textContent !== text) span.textContent = text;
    if (span.className !== name) span.className = name;
    part = whole ? whole[1] - 1 : Math.max(part - 1, 0);
  }
  pane.where.replaceChildren(...stepAndTime(view));
}
function stepAndTime(view) {
  const {steps, times} = view.take, f = frameOf(view);
  return ["step ", make("b", "", steps[f]), "/" + steps[steps.length - 1] + "\u2002 t ", make("b", "", times[f].toFixed(3))];
}
function draw() {
  views.forEach((view, i) => drawText(view, panes[i]));
  $("slider").value = moment;
  const one = views.length === 1;
  $("where").replaceChildren(...(one ? stepAndTime(views[0]) : ["t ", make("b", "", moments[moment].toFixed(3))]));
  $("slider").setAttribute("aria-valuetext", $("where").textContent);
  const now = (pick) => views.map(pick).join(" and ");
  $("changesNow").textContent = now((v) => v.changed[frameOf(v)]);
  $("entropyNow").textContent = now((v) => v.entropy[frameOf(v)].toFixed(3));
  const x = last ? 300 * moment / last : 0;
  document.querySelectorAll("svg .now").forEach((n) => { n.setAttribute("x1", x); n.setAttribute("x2", x); });
  markNow();
}
// one line for each view through (moment, value), on a common scale
function chart(id, values, first, low, top) {
  const svg = $(id), high = Math.max(...values.flat());
  svg.querySelectorAll("path").forEach((n) => n.setAttribute("d", ""));
  views.forEach((view, i) => {
    const points = values[i].map((v, k) => {
      const x = 300 * view.take.at.indexOf(k + first) / Math.max(last, 1);
      return x.toFixed(2) + " " + (93 - 90 * (v - low) / (high - low || 1)).toFixed(2);
    });
    svg.querySelector("." + NAMES[i]).setAttribute("d", points.length ? "M" + points.join("L") : "");
  });
  $(id + "Top").textContent = top(high);
}
function charts() {
  const changed = views.map((v) => v.changed.slice(1)), entropy = views.map((v) => v.entropy);
  const least = Math.min(...entropy.flat());
  chart("changes", changed.some((c) => c.length) ? changed : [[0]], 1, 0, (high) => "up to " + high);
  chart("entropy", entropy, 0, least * .95, (high) => least.toFixed(2) + " to " + high.toFixed(2));
}
// ---- the history of the picked place
function history_() {
  const box = $("history");
  box.textContent = ""; $("hint").hidden = picked >= 0;
  box.parentElement.classList.toggle("open", picked >= 0);
  $("place").textContent = picked < 0 ? "" : "position " + (picked + 1) + " of " + Math.max(...views.map((v) => v.length));
  views.forEach((view) => {
    if (picked < 0 || picked >= view.length) return;
    if (views.length > 1) box.append(make("h3", "", view.take.label));
    const list = make("ol");
    view.tokens.forEach((row, f) => {
      if (f && row[picked] === view.tokens[f - 1][picked]) return;
      const item = make("li"), text = data.texts[row[picked]].replaceAll("\n", "↵");
      item.dataset.frame = f;
      item.append(make("code", "", text.trim() ? text : "“" + text + "”"),
        make("small", "", (f ? "step " + view.take.steps[f] : "at first") + ", t " + view.take.times[f].toFixed(3)));
      list.append(item);
    });
    box.append(list);
  });
  markNow();
}
function markNow() {  // which of the picked place's tokens stands there at this moment
  const lists = document.querySelectorAll("#history ol"), here = views.filter((v) => picked < v.length);
  lists.forEach((list, i) => {
    const items = [...list.children], f = frameOf(here[i]);
    const now = items.filter((item) => Number(item.dataset.frame) <= f).pop();
    items.forEach((item) => { item.className = item === now ? "now" : ""; });
  });
}
function pick(l, pin) {
  if (l === picked) { pinned = pinned || pin; return; }
  picked = l; pinned = pin && l >= 0;
  panes.forEach((pane) => pane.spans.forEach((span, k) => { span.tabIndex = k === Math.max(l, 0) ? 0 : -1; span.setAttribute("aria-selected", k === l); }));
  draw(); history_();
}
// ---- time
function go(to) { moment = Math.min(Math.max(to, 0), last); draw(); if (moment === last || !timer) stop(); }
function jump(to) { stop(); go(to); }
function stop() { clearTimeout(timer); timer = 0; $("play").textContent = moment === last ? "↻ Replay" : "▶ Play"; }
function tick() {
  const rest = Math.max(40, 9000 / (last + 1)) / Number($("speed").value);
  timer = setTimeout(() => { go(moment + 1); if (moment < last) tick(); }, rest);
}
function play() {
  if (timer) return stop();
  if (moment === last) { moment = 0; draw(); }
  if (moment === last) return;
  $("play").textContent = "❚❚ Pause"; tick();
}
// ---- one pane for each take
function pane(view, i) {
  const card = make("section", "card take"), head = make("h2"), name = make("span", "name"), where = make("span", "at");
  card.setAttribute("aria-label", view.take.label || "Sample");
  name.append(make("span", "swatch " + NAMES[i]), view.take.label); head.append(name);
  if (views.length > 1) head.append(where);  // else it is among the controls
  if (view.take.label) card.append(head);
  if (view.take.notes.length) card.append(make("p", "facts", view.take.notes.join(", ")));
  const text = make("div", "text");
  text.setAttribute("role", "listbox"); text.setAttribute("aria-label", "Tokens at this moment");
  text.setAttribute("aria-orientation", "horizontal");
  const spans = Array.from({length: view.length}, (_, l) => {
    const span = make("span"); span.dataset.l = l; span.tabIndex = l ? -1 : 0; span.setAttribute("role", "option"); span.setAttribute("aria-selected", "false");
    text.append(span); return span;
  });
  const of = (e) => e.target.dataset.l === undefined ? -1 : Number(e.target.dataset.l);
  text.addEventListener("mouseover", (e) => {  // also when the text moves below a pointer that rests
    const at = e.clientX + "," + e.clientY, moved = at !== pointer;
    pointer = at;
    if (moved && of(e) >= 0 && !pinned) pick(of(e), false);
  });
  text.addEventListener("click", (e) => { if (of(e) >= 0) { pick(of(e), true); e.target.focus(); } });
  text.addEventListener("focusin", (e) => { if (of(e) >= 0) pick(of(e), true); });
  text.addEventListener("keydown", (e) => {
    if (e.ctrlKey || e.metaKey || e.altKey) return;
    const seen = spans.filter((span) => !span.classList.contains("part")), k = seen.indexOf(e.target);
    const to = {ArrowLeft: k - 1, ArrowRight: k + 1, Home: 0, End: seen.length - 1}[e.key];
    if (to === undefined) return;
    e.preventDefault(); e.stopPropagation();
    const next = seen[Math.min(Math.max(to, 0), seen.length - 1)];
    next.focus(); next.scrollIntoView({block: "nearest"});
  });
  card.append(text);
  return {card, text, spans, where};
}
function fit() {  // as tall as the tallest moment, so that playing moves nothing below
  const keep = moment, tall = panes.map(() => 0);
  panes.forEach((p) => { p.text.style.minHeight = ""; });
  for (const m of [0, last >> 2, last >> 1, last - (last >> 2), last]) {
    moment = m; draw(); panes.forEach((p, i) => { tall[i] = Math.max(tall[i], p.text.offsetHeight); });
  }
  panes.forEach((p, i) => { p.text.style.minHeight = tall[i] + "px"; });
  moment = keep; draw();
}
function show(i) {
  sample = i; $("sample").value = i; picked = -1; pinned = false;
  views = takes.map((take) => unfold(take, take.samples[i]));
  panes = views.map(pane);
  $("takes").replaceChildren(...panes.map((p) => p.card));
  $("given").hidden = views.every((v) => !v.known.size);
  charts(); fit(); history_();
}
$("slider").max = last;
$("slider").addEventListener("input", (e) => jump(Number(e.target.value)));
$("play").addEventListener("click", play);
$("sample").addEventListener("change", (e) => { stop(); show(Number(e.target.value)); });
document.querySelectorAll("svg").forEach((s) => s.addEventListener("click", (e) => {
  const box = s.getBoundingClientRect(); jump(Math.round(last * (e.clientX - box.left) / box.width));
}));
document.addEventListener("keydown", (e) => {
  if (e.ctrlKey || e.metaKey || e.altKey || e.target.tagName === "SELECT") return;
  const act = {" ": play, ArrowLeft: () => jump(moment - 1), ArrowRight: () => jump(moment + 1),
    Home: () => jump(0), End: () => jump(last), Escape: () => pick(-1, false)}[e.key];
  if (!act || (e.key === " " && e.target.tagName === "BUTTON")) return;
  e.preventDefault(); act();
});
let width = innerWidth;
addEventListener("resize", () => { if (innerWidth !== width) { width = innerWidth; fit(); } });
const count = takes[0].samples.length;
takes[0].samples.forEach((_, i) => { const o = make("option", "", i + 1 + " of " + count); o.value = i; $("sample").append(o); });
$("choose").hidden = count < 2;
document.querySelectorAll(".from").forEach((n) => { n.textContent = "t " + moments[0].toFixed(3); });
document.querySelectorAll(".to").forEach((n) => { n.textContent = "t " + moments[last].toFixed(3); });
const wish = new URLSearchParams(location.hash.slice(1));  // page.html#sample=2&moment=40&place=17
moment = Math.min(Math.max(Number(wish.get("moment")) || 0, 0), last);
show(Math.min(Math.max((Number(wish.get("sample")) || 1) - 1, 0), count - 1));
if (wish.has("place")) pick(Math.min(Math.max(Number(wish.get("place")) - 1, 0), views[0].length - 1), true);
stop();
if (!wish.has("moment") && !matchMedia("(prefers-reduced-motion: reduce)").matches) play();
