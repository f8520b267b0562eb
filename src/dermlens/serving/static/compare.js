// Two answers side by side, and what changed.
import { band, classOf, isReadable, mixWords, orderOf, verdict } from "./advice.js";
import { button, capital, dot, h, percent, when } from "./dom.js";
import { bar, heading, photo, reminder } from "./result.js";
import { fill, S } from "./words.js";

export function compareView(items, model, back) {
  const pair = [items[0], items[1]];
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
  const columns = h("div", { class: "pair" });
  const table = h("div", {});
  function refresh() {
    columns.replaceChildren(...pair.map((item, side) => column(item, model, choosers[side])));
    table.replaceChildren(...difference(pair, model));
  }
  refresh();
  return h("section", { class: "compare" },
    heading(S.compare.heading), h("p", { class: "soft" }, S.compare.help), columns, table, reminder(model),
    h("div", { class: "row actions" }, button(S.actions.print, () => print()), button(S.compare.back, back)));
}

function column(item, model, chooser) {
  const first = isReadable(item) && h("span", { class: "share" }, percent(item.answer.probability));
  return h("div", {}, chooser, h("figure", { class: "viewport" }, photo(item, model)),
    h("div", { class: "verdict" }, h("h3", {}, verdict(item, model), " ", first), h("p", { class: "soft small" }, when(item.at))),
    band(item, model));
}

const points = (n) => fill(S.compare.points, { n: `${n > 0 ? "+" : n < 0 ? "−" : "±"}${Math.abs(n)}` });

function difference(pair, model) {
  const read = pair.filter(isReadable);
  if (!read.length) return [];
  const [one, two] = read.map(({ answer }) => JSON.stringify(answer.case_mix.shares));
  const differ = read.length > 1 && one !== two;
  const share = (item, code) => (isReadable(item) ? item.answer.probabilities[code] ?? 0 : null); // null: no answer
  const number = (text, more = "") => h("td", { class: `number${more}` }, text);
  const rows = orderOf(read[0].answer) // the order of the first that has one
    .map(([code]) => ({ ...classOf(model, code), one: share(pair[0], code), two: share(pair[1], code) }))
    .map(({ name, malignancy: kind, one: before, two: after }) => h("tr", { class: kind },
      h("th", { scope: "row" }, dot(), capital(name)),
      [before, after].map((each) => [bar(each), number(each === null ? S.compare.none : percent(each))]),
      number(differ || before === null || after === null ? S.compare.none : points(Math.round((after - before) * 100)), " change")));
  const head = (text) => h("th", { scope: "col", class: "number" }, text);
  const space = () => h("td", { class: "bar" });
  return [
    h("p", { class: "soft small mix" }, differ ? S.mix.differ : mixWords(read[0].answer.case_mix)),
    h("table", { class: "bars wide" }, h("caption", { class: "visually-hidden" }, S.compare.table),
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, S.result.className),
        space(), head(S.compare.first), space(), head(S.compare.second), head(S.compare.change))),
      h("tbody", {}, rows))];
}
