// Two photographs of one lesion, side by side: their readings and how they differ.
import { button, capital, h, percent, when } from "./dom.js";
import { draw } from "./frame.js";
import { statusOf, verdict } from "./result.js";
import { S } from "./strings.js";

export function compareView(items, model, back) {
  let pair = [items[0], items[1]];
  const columns = h("div", { class: "pair" });
  const table = h("div", {});
  const chooser = (side, label) => {
    const select = h("select", { id: `compare-${side}` }, items.map((item, index) => h("option", { value: index }, item.name)));
    select.value = items.indexOf(pair[side]);
    select.addEventListener("change", () => {
      pair[side] = items[Number(select.value)];
      refresh();
    });
    return h("label", { class: "choice" }, h("span", {}, label), select);
  };
  const choosers = [chooser(0, S.compare.first), chooser(1, S.compare.second)];
  function refresh() {
    columns.replaceChildren(...pair.map((item, side) => column(item, model, choosers[side])));
    table.replaceChildren(difference(pair, model));
  }
  refresh();
  return h("section", { class: "compare" },
    h("h2", { tabIndex: -1, "data-focus": "" }, S.compare.heading), h("p", { class: "soft" }, S.compare.help),
    columns, table, h("div", { class: "row actions" }, button(S.actions.print, () => print()), button(S.compare.back, back)));
}

function column(item, model, chooser) {
  const canvas = h("canvas", { width: 1024, height: 1024, role: "img", "aria-label": S.result.imageAlt(item.name, verdict(item, model)) });
  if (item.bitmap) draw(canvas, item.bitmap, item.view);
  const known = model.classes.find((each) => each.code === item.answer.diagnosis?.code);
  const kind = statusOf(item) === "ok" ? known?.malignancy ?? "unknown" : statusOf(item);
  return h("div", {}, chooser, h("figure", { class: "viewport" }, canvas),
    h("div", { class: `verdict ${kind}` },
      known && statusOf(item) === "ok" ? h("p", { class: "kind" }, h("b", { class: "dot", "aria-hidden": "true" }), S.result.kinds[kind]) : null,
      h("h3", {}, verdict(item, model)), h("p", { class: "soft small" }, when(item.at, S.lang))));
}

function difference([first, second], model) {
  // null where there is no answer: not a probability of nothing
  const share = (item, code) => (["ok", "uncertain"].includes(statusOf(item)) ? item.answer.probabilities[code] ?? 0 : null);
  const bar = (value) => {
    if (value === null) return h("td", { class: "bar", "aria-hidden": "true" });
    const fill = h("i", {});
    fill.style.width = `${Math.max(value * 100, 0.4)}%`;
    return h("td", { class: "bar", "aria-hidden": "true" }, h("span", {}, fill));
  };
  const told = (value) => (value === null ? "–" : percent(value));
  const rows = [...model.classes]
    .sort((a, b) => share(first, b.code) + share(second, b.code) - share(first, a.code) - share(second, a.code))
    .map(({ code, name, malignancy }) => {
      const [one, two] = [share(first, code), share(second, code)];
      return h("tr", { class: malignancy }, h("th", { scope: "row" }, h("b", { class: "dot", "aria-hidden": "true" }), capital(name)),
        bar(one), h("td", { class: "number" }, told(one)), bar(two), h("td", { class: "number" }, told(two)),
        h("td", { class: "number change" }, one === null || two === null ? "–" : S.compare.points(Math.round((two - one) * 100))));
    });
  const head = (text) => h("th", { scope: "col", class: "number" }, text);
  return h("table", { class: "bars wide" }, h("caption", { class: "visually-hidden" }, S.compare.table),
    h("thead", {}, h("tr", {}, h("th", { scope: "col" }, S.result.className), h("td", { class: "bar" }), head(S.compare.first), h("td", { class: "bar" }), head(S.compare.second), head(S.compare.change))),
    h("tbody", {}, rows));
}
