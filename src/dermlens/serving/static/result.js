// Answers: one with its heat map, two side by side, and one as a file.
import { button, capital, dot, h, percent, when } from "./dom.js";
import { canvasOf, heatMap } from "./picture.js";
import { fill, S } from "./words.js";

const classOf = (model, code) => model.classes.find((each) => each.code === code) ?? { code, name: code, malignancy: "unknown" };
const statusOf = (item) => (item.error ? "error" : item.answer.status);
const byShare = (answer) => Object.entries(answer.probabilities).sort((a, b) => b[1] - a[1]);

// A rejected image has probabilities that mean nothing: the page does not show them.
const isReadable = (item) => ["ok", "uncertain"].includes(statusOf(item)) && Object.keys(item.answer.probabilities).length > 0;

export function verdict(item) {
  const status = statusOf(item);
  return status === "ok" ? capital(item.answer.diagnosis.name) : S.result.verdicts[status] ?? status;
}

function photo(item) {
  const label = fill(S.result.imageAlt, { name: item.name, diagnosis: verdict(item) });
  return item.bitmap ? canvasOf(item, 1024, { role: "img", "aria-label": label }) : h("p", {}, S.result.noPicture);
}

export function resultView(item, state, actions, strip) {
  const layer = h("canvas", { width: 512, height: 512, class: "heat", "aria-hidden": "true" });
  const left = h("div", { class: "left" }, h("figure", { class: "viewport" }, photo(item), layer),
    isReadable(item) && heatControls(item, state, layer), strip);
  return h("div", { class: "bench" }, left, panel(item, state.model, actions));
}

function heatControls(item, state, layer) {
  const options = byShare(item.answer).map(([code]) => h("option", { value: code }, capital(classOf(state.model, code).name)));
  const choice = h("select", { id: "heat-class" }, options);
  choice.value = item.answer.status === "ok" ? item.answer.diagnosis.code : options[0].value;
  const slider = h("input", { type: "range", id: "heat-opacity", min: 0, max: 1, step: 0.01, value: state.opacity });
  const note = h("p", { class: "soft small", role: "status" }, S.heat.note);
  const fade = () => (layer.style.opacity = state.opacity = Number(slider.value));
  const show = async () => {
    const code = choice.value;
    const context = layer.getContext("2d");
    item.heat ??= new Map(); // asked for once per class
    if (!item.heat.has(code)) item.heat.set(code, state.engine.explain(item.sent, code).then(heatMap));
    try {
      const heat = await item.heat.get(code);
      if (code !== choice.value) return; // another class was chosen meanwhile
      context.clearRect(0, 0, layer.width, layer.height);
      if (heat) context.drawImage(heat, 0, 0, layer.width, layer.height);
      note.textContent = heat ? S.heat.note : S.heat.none;
    } catch {
      item.heat.delete(code);
      note.textContent = S.heat.failed;
    }
    layer.dataset.shown = code;
  };
  slider.addEventListener("input", fade);
  choice.addEventListener("change", show);
  fade();
  show();
  return h("div", { class: "controls heat-controls" },
    h("label", { class: "slider" }, h("span", {}, S.heat.opacity), slider),
    h("label", { class: "choice" }, h("span", {}, S.heat.heading), choice), note);
}

function panel(item, model, actions) {
  const { answer, error } = item;
  const facts = isReadable(item) && [malignancy(answer, model), bars(answer, model), ruleNote(answer, model), likelySet(answer, model),
    !model.calibrated && h("p", { class: "small" }, S.result.notCalibrated)];
  const took = answer && !error && ` · ${fill(S.result.took, { ms: answer.elapsed_ms.toFixed(0) })}`;
  return h("section", { class: `panel ${statusOf(item)}` },
    statusOf(item) === "ok" ? headline(answer, model) : refusal(item),
    facts,
    !error && reminder(model),
    h("div", { class: "row actions" },
      actions.retry && button(S.actions.retry, actions.retry, { class: "primary" }),
      actions.compare && button(S.actions.compare, actions.compare),
      actions.adjust && button(S.actions.adjust, actions.adjust),
      !error && [button(S.actions.print, () => print()), button(S.actions.json, () => saveJson(item, model))],
      button(S.actions.again, actions.again, { class: "quiet" })),
    h("p", { class: "soft small meta" }, item.name, item.at && ` · ${when(item.at)}`, took));
}

const heading = (text) => h("h2", { tabIndex: -1, "data-focus": "" }, text);
const reminder = (model) => h("p", { class: "reminder" }, h("strong", {}, model.disclaimer), " ", S.result.reminder);

export const codesOf = ({ icd10, icd11 }) =>
  [icd10 && fill(S.result.icd10, { code: icd10 }), icd11 && fill(S.result.icd11, { code: icd11 })].filter(Boolean).join("  ·  ");

function headline({ diagnosis }, model) {
  const { malignancy: kind, plain, ...known } = classOf(model, diagnosis.code);
  const codes = codesOf(known);
  return h("div", { class: `verdict ${kind}` },
    h("p", { class: "kind" }, dot(), S.result.kinds[kind]),
    heading(capital(diagnosis.name)),
    plain && h("p", {}, plain),
    codes && h("p", { class: "codes" }, codes));
}

function refusal(item) {
  const status = statusOf(item);
  const { answer, error } = item;
  const reasons = answer?.reasons ?? [];
  const lead = { uncertain: reasons.length ? S.result.uncertainLead : S.result.uncertainBare, rejected: S.result.rejectedLead }[status];
  return h("div", { class: `verdict ${status}` }, heading(S.result.verdicts[status] ?? status), lead && h("p", {}, lead),
    error ? [error.message, error.remedy].filter(Boolean).map((text) => h("p", {}, text))
      : h("ul", { class: "reasons" }, reasons.map(({ text }) => h("li", {}, text))));
}

function bar(share) {
  const length = h("i", { style: `width: ${Math.max(share * 100, 0.4)}%` });
  return h("td", { class: "bar", "aria-hidden": "true" }, share !== null && h("span", {}, length));
}

function bars(answer, model) {
  const rows = byShare(answer).map(([code, share]) => {
    const { name, malignancy: kind } = classOf(model, code);
    const chosen = answer.status === "ok" && answer.diagnosis?.code === code;
    const plausible = answer.prediction_set?.includes(code);
    const marks = [chosen && S.result.chosen, plausible && S.result.inSet].filter(Boolean).join(", ");
    return h("tr", { class: [kind, chosen && "chosen", plausible && "plausible"].filter(Boolean).join(" ") },
      h("th", { scope: "row" }, dot(), capital(name), marks && h("span", { class: "visually-hidden" }, ` (${marks})`)),
      bar(share), h("td", { class: "number" }, percent(share)));
  });
  const head = (text) => h("th", { scope: "col" }, text);
  return h("table", { class: "bars" }, h("caption", {}, S.result.probabilities, answer.status !== "ok" && h("span", {}, S.result.closest)),
    h("thead", { class: "visually-hidden" }, h("tr", {}, head(S.result.className), h("td", {}), head(S.result.probability))),
    h("tbody", {}, rows));
}

function malignancy({ malignant_probability: share, referral }, model) {
  if (share === null || share === undefined) return null;
  const gauge = h("span", { class: "gauge", "aria-hidden": "true" }, h("i", { style: `width: ${share * 100}%` }));
  const point = model.operating_points.find(({ name }) => name === referral?.operating_point);
  const dangerous = model.classes.filter(({ malignancy: kind }) => kind.endsWith("malignant")).map(({ code }) => code);
  if (point && [...point.codes].sort().join() === dangerous.sort().join()) { // the threshold is of the same classes as the scale
    gauge.append(h("b", { style: `left: ${referral.threshold * 100}%` }));
  }
  const advice = referral && h("p", {}, h("strong", {}, referral.advised ? S.result.refer : S.result.noRefer), " ",
    h("span", { class: "soft" }, thresholdOf(referral)));
  return h("div", { class: referral?.advised ? "fact advised" : "fact" },
    h("h3", {}, S.result.malignancy, h("span", { class: "number" }, percent(share))), gauge, advice);
}

function thresholdOf(referral) {
  const [threshold, sensitivity, specificity] = ["threshold", "sensitivity", "specificity"].map((name) => percent(referral[name]));
  if (!sensitivity || !specificity) return fill(S.result.threshold, { threshold });
  return fill(S.result.thresholdTested, { threshold, sensitivity, specificity });
}

function ruleNote(answer, model) {
  const [largest] = byShare(answer)[0];
  if (answer.status !== "ok" || largest === answer.diagnosis.code) return null;
  return h("p", { class: "soft small" }, fill(S.result.ruleNote, { largest: capital(classOf(model, largest).name) }));
}

function likelySet(answer, model) {
  if (!answer.prediction_set?.length) return null;
  const names = answer.prediction_set.map((code) => classOf(model, code).name).join(", ");
  const share = percent(model.prediction_set_level);
  const level = share && fill(S.result.setLevel, { level: share });
  return h("div", { class: "fact" }, h("h3", {}, S.result.set), h("p", {}, capital(names)),
    h("p", { class: "soft small" }, fill(S.result.setNote, { level })));
}

function saveJson(item, { name, version, sha256, software, disclaimer }) {
  // The answer as it came, with the model and the time. The image stays out of it.
  const read_at = new Date(item.at).toISOString();
  const model = { name, version, sha256, software };
  const file = { file: item.name, read_at, disclaimer, model, frame: item.view, prediction: item.answer };
  const url = URL.createObjectURL(new Blob([JSON.stringify(file, null, 1)], { type: "application/json" }));
  h("a", { href: url, download: `dermlens-${read_at.slice(0, 10)}-${item.id}.json` }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

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
    table.replaceChildren(difference(pair, model));
  }
  refresh();
  return h("section", { class: "compare" },
    heading(S.compare.heading), h("p", { class: "soft" }, S.compare.help), columns, table, reminder(model),
    h("div", { class: "row actions" }, button(S.actions.print, () => print()), button(S.compare.back, back)));
}

function column(item, model, chooser) {
  const isOk = statusOf(item) === "ok";
  const kind = isOk ? classOf(model, item.answer.diagnosis.code).malignancy : statusOf(item);
  return h("div", {}, chooser, h("figure", { class: "viewport" }, photo(item)),
    h("div", { class: `verdict ${kind}` },
      isOk && h("p", { class: "kind" }, dot(), S.result.kinds[kind]),
      h("h3", {}, verdict(item)), h("p", { class: "soft small" }, when(item.at))));
}

const points = (n) => fill(S.compare.points, { n: `${n > 0 ? "+" : n < 0 ? "−" : "±"}${Math.abs(n)}` });

function difference(pair, model) {
  const share = (item, code) => (isReadable(item) ? item.answer.probabilities[code] ?? 0 : null); // null: no answer
  const number = (text, more = "") => h("td", { class: `number${more}` }, text);
  const rows = model.classes
    .map(({ code, name, malignancy: kind }) => ({ name, kind, one: share(pair[0], code), two: share(pair[1], code) }))
    .sort((a, b) => b.one + b.two - a.one - a.two)
    .map(({ name, kind, one, two }) => h("tr", { class: kind }, h("th", { scope: "row" }, dot(), capital(name)),
      [one, two].map((each) => [bar(each), number(each === null ? "–" : percent(each))]),
      number(one === null || two === null ? "–" : points(Math.round((two - one) * 100)), " change")));
  const head = (text) => h("th", { scope: "col", class: "number" }, text);
  const space = () => h("td", { class: "bar" });
  return h("table", { class: "bars wide" }, h("caption", { class: "visually-hidden" }, S.compare.table),
    h("thead", {}, h("tr", {}, h("th", { scope: "col" }, S.result.className),
      space(), head(S.compare.first), space(), head(S.compare.second), head(S.compare.change))),
    h("tbody", {}, rows));
}
