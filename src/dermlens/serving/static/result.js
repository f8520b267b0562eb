// One answer: the picture with its heat map on the left, the reading on the right.
import { button, capital, h, percent, when } from "./dom.js";
import { saveJson } from "./export.js";
import { draw } from "./frame.js";
import { heatOf } from "./heat.js";
import { S } from "./strings.js";

const classOf = (model, code) => model.classes.find((each) => each.code === code) ?? { code, name: code, malignancy: "unknown" };
const named = (model, code) => classOf(model, code).name;
export const statusOf = (item) => (item.error ? "error" : item.answer.status);

// A rejected image keeps probabilities that mean nothing: they are not shown.
const isReadable = (item) => ["ok", "uncertain"].includes(statusOf(item)) && Object.keys(item.answer.probabilities).length > 0;

export function verdict(item, model) {
  const status = statusOf(item);
  return status === "ok" ? capital(item.answer.diagnosis.name) : S.result[status] ?? named(model, status);
}

export function viewport(item, state) {
  const picture = h("canvas", { width: 1024, height: 1024, role: "img", "aria-label": S.result.imageAlt(item.name, verdict(item, state.model)) });
  if (item.bitmap) draw(picture, item.bitmap, item.view);
  const layer = h("canvas", { width: 512, height: 512, class: "heat", "aria-hidden": "true" });
  const figure = h("figure", { class: "viewport" }, item.bitmap ? picture : h("p", {}, S.result.noPicture), layer);
  if (!isReadable(item)) return { figure, controls: null };
  return { figure, ...heatControls(item, state, layer) };
}

function heatControls(item, state, layer) {
  const codes = Object.keys(item.answer.probabilities).sort((a, b) => item.answer.probabilities[b] - item.answer.probabilities[a]);
  const choice = h("select", { id: "heat-class" }, codes.map((code) => h("option", { value: code }, capital(named(state.model, code)))));
  choice.value = item.answer.status === "ok" ? item.answer.diagnosis.code : codes[0];
  const slider = h("input", { type: "range", id: "heat-opacity", min: 0, max: 1, step: 0.01, value: state.opacity });
  const note = h("p", { class: "soft small", role: "status" }, S.heat.note);
  const fade = () => {
    state.opacity = Number(slider.value);
    layer.style.opacity = slider.value;
  };
  async function show() {
    const context = layer.getContext("2d");
    try {
      const heat = await heatOf(item, choice.value);
      context.clearRect(0, 0, layer.width, layer.height);
      if (heat) context.drawImage(heat, 0, 0, layer.width, layer.height);
      note.textContent = heat ? S.heat.note : S.heat.none;
    } catch {
      item.heat?.delete(choice.value);
      note.textContent = S.heat.failed;
    }
    layer.dataset.shown = choice.value;
  }
  slider.addEventListener("input", fade);
  choice.addEventListener("change", show);
  fade();
  show();
  const controls = h("div", { class: "controls heat-controls" },
    h("label", { class: "slider" }, h("span", {}, S.heat.opacity), slider),
    h("label", { class: "choice" }, h("span", {}, S.heat.heading), choice), note);
  const explain = (code) => {
    choice.value = code;
    show();
  };
  return { controls, explain };
}

export function bars(answer, model) {
  const rows = Object.entries(answer.probabilities).sort((a, b) => b[1] - a[1]).map(([code, share]) => {
    const { name, malignancy } = classOf(model, code);
    const chosen = answer.status === "ok" && answer.diagnosis?.code === code;
    const fill = h("i", {});
    fill.style.width = `${Math.max(share * 100, 0.4)}%`;
    const marks = [chosen && S.result.chosen, answer.prediction_set?.includes(code) && S.result.inSet].filter(Boolean);
    return h("tr", { class: `${malignancy}${chosen ? " chosen" : ""}${answer.prediction_set?.includes(code) ? " plausible" : ""}` },
      h("th", { scope: "row" }, h("b", { class: "dot", "aria-hidden": "true" }), capital(name), marks.length ? h("span", { class: "visually-hidden" }, ` (${marks.join(", ")})`) : null),
      h("td", { class: "bar", "aria-hidden": "true" }, h("span", {}, fill)),
      h("td", { class: "number" }, percent(share)));
  });
  return h("table", { class: "bars" }, h("caption", {}, S.result.probabilities, answer.status === "ok" ? null : h("span", {}, S.result.closest)),
    h("thead", { class: "visually-hidden" }, h("tr", {}, h("th", { scope: "col" }, S.result.className), h("td", {}), h("th", { scope: "col" }, S.result.probability))),
    h("tbody", {}, rows));
}

function headline(item, model) {
  const status = statusOf(item);
  if (status !== "ok") return refusal(item, status);
  const { code, name } = item.answer.diagnosis;
  const known = classOf(model, code);
  return h("div", { class: `verdict ${known.malignancy}` },
    h("p", { class: "kind" }, h("b", { class: "dot", "aria-hidden": "true" }), S.result.kinds[known.malignancy]),
    h("h2", { tabIndex: -1, "data-focus": "" }, capital(name)),
    known.plain ? h("p", {}, known.plain) : null,
    known.icd10 || known.icd11 ? h("p", { class: "codes" }, S.result.icd(known.icd10, known.icd11)) : null);
}

function refusal(item, status) {
  const reasons = item.answer?.reasons ?? [];
  const lead = { uncertain: reasons.length ? S.result.uncertainLead : S.result.uncertainBare, rejected: S.result.rejectedLead }[status];
  const told = item.error ? [item.error.message, item.error.remedy] : reasons.map((reason) => reason.text);
  return h("div", { class: `verdict ${status}` },
    h("h2", { tabIndex: -1, "data-focus": "" }, S.result[status] ?? status),
    lead ? h("p", {}, lead) : null,
    item.error ? told.filter(Boolean).map((text) => h("p", {}, text)) : h("ul", { class: "reasons" }, told.map((text) => h("li", {}, text))));
}

function likelySet(answer, model) {
  if (!answer.prediction_set?.length) return null;
  const names = answer.prediction_set.map((code) => named(model, code)).join(", ");
  return h("div", { class: "fact" }, h("h3", {}, S.result.set), h("p", {}, capital(names)), h("p", { class: "soft small" }, S.result.setNote(percent(model.prediction_set_level))));
}

function threshold(answer, model) {
  // The tick belongs on the scale only when the threshold is meant for the same classes.
  const point = model.operating_points.find(({ name }) => name === answer.referral?.operating_point);
  const grave = model.classes.filter(({ malignancy }) => malignancy.endsWith("malignant")).map(({ code }) => code);
  return point && [...point.codes].sort().join() === grave.sort().join() ? answer.referral.threshold : null;
}

function malignancy(answer, model) {
  if (answer.malignant_probability === null || answer.malignant_probability === undefined) return null;
  const { referral } = answer;
  const fill = h("i", {});
  fill.style.width = `${answer.malignant_probability * 100}%`;
  const scale = h("span", { class: "gauge", "aria-hidden": "true" }, fill);
  const limit = threshold(answer, model);
  if (limit !== null) {
    const tick = h("b", {});
    tick.style.left = `${limit * 100}%`;
    scale.append(tick);
  }
  const told = referral && h("p", {}, h("strong", {}, referral.advised ? S.result.refer : S.result.noRefer), " ",
    h("span", { class: "soft" }, S.result.referText(percent(referral.threshold), percent(referral.sensitivity), percent(referral.specificity))));
  return h("div", { class: `fact${referral?.advised ? " advised" : ""}` },
    h("h3", {}, S.result.malignancy, h("span", { class: "number" }, percent(answer.malignant_probability))), scale, told);
}

function ruleNote(answer, model) {
  const [largest] = Object.entries(answer.probabilities).sort((a, b) => b[1] - a[1])[0] ?? [];
  if (answer.status !== "ok" || !largest || largest === answer.diagnosis?.code) return null;
  return h("p", { class: "soft small" }, S.result.ruleNote(capital(named(model, largest))));
}

export function resultPanel(item, model, actions, port) {
  const answer = item.answer;
  const readable = isReadable(item);
  const row = h("div", { class: "row actions" },
    actions.retry ? button(S.actions.retry, actions.retry, { class: "primary" }) : null,
    actions.compare ? button(S.actions.compare, actions.compare) : null,
    actions.adjust ? button(S.actions.adjust, actions.adjust) : null,
    item.error ? null : button(S.actions.print, () => print()),
    item.error ? null : button(S.actions.json, () => saveJson(item, model)),
    button(S.actions.again, actions.again, { class: "quiet" }));
  return h("section", { class: `panel ${statusOf(item)}` },
    headline(item, model),
    readable ? malignancy(answer, model) : null,
    readable ? bars(answer, model) : null,
    readable ? ruleNote(answer, model) : null,
    readable ? likelySet(answer, model) : null,
    model.calibrated || !readable ? null : h("p", { class: "small" }, S.result.notCalibrated),
    item.error ? null : h("p", { class: "reminder" }, S.result.reminder),
    row,
    h("p", { class: "soft small meta" }, item.name, item.at ? ` · ${when(item.at, S.lang)}` : null,
      answer && !item.error ? ` · ${S.result.took(answer.elapsed_ms.toFixed(0))}` : null));
}
