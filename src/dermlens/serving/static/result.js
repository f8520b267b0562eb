// One answer, in one order: picture, first diagnosis, advice, probabilities, what remains, why, details.
import { band, between, classOf, isReadable, isUnfamiliar, list, mixWords, orderOf, statusOf, verdict } from "./advice.js";
import { button, capital, dot, h, percent, when } from "./dom.js";
import { canvasOf, heatMap } from "./picture.js";
import { fill, S } from "./words.js";

export function photo(item, model) {
  const label = fill(S.result.imageAlt, { name: item.name, diagnosis: verdict(item, model) });
  return item.bitmap ? canvasOf(item, 1024, { role: "img", "aria-label": label }) : h("p", {}, S.result.noPicture);
}

export function resultView(item, state, actions, strip) {
  const left = h("div", { class: "left" }, h("figure", { class: "viewport" }, photo(item, state.model)), strip);
  return h("div", { class: "bench reading" }, left, panel(item, state, actions));
}

function panel(item, state, actions) {
  const { answer, error } = item;
  const { model } = state;
  return h("section", { class: `panel ${statusOf(item)}` },
    isReadable(item) ? headline(answer, model, actions) : refusal(item, model),
    (!error || error.remedy) && band(item, model),
    (isReadable(item) || isUnfamiliar(item)) && bars(item, model, actions),
    isReadable(item) && [likelySet(answer, model), why(item, state)],
    !error && [reminder(model), details(item, model)],
    h("div", { class: "row actions" },
      actions.retry && button(S.actions.retry, actions.retry, { class: "primary" }),
      actions.compare && button(S.actions.compare, actions.compare),
      actions.adjust && button(S.actions.adjust, actions.adjust),
      !error && [button(S.actions.print, () => print()), button(S.actions.json, () => saveJson(item, model))],
      button(S.actions.again, actions.again, { class: "quiet" })),
    h("p", { class: "soft small meta" }, item.name, item.at && ` · ${when(item.at)}`));
}

export const heading = (...content) => h("h2", { tabIndex: -1, "data-focus": "" }, content);
export const reminder = (model) => h("p", { class: "reminder" }, h("strong", {}, model.disclaimer), " ", S.result.reminder);

export const codesOf = ({ icd10, icd11 }) =>
  [icd10 && fill(S.codes.icd10, { code: icd10 }), icd11 && fill(S.codes.icd11, { code: icd11 })].filter(Boolean).join("  ·  ");

function headline(answer, model, actions) {
  const [first, ...others] = between(answer);
  const share = (code) => h("span", { class: "share" }, percent(answer.probabilities[code]));
  return h("div", { class: "verdict" },
    others.length > 0 ? h("p", { class: "kind doubt" }, S.result.uncertain) : h("p", { class: "kind first" }, S.result.first,
      h("span", { class: classOf(model, first).malignancy }, dot(), S.result.kinds[classOf(model, first).malignancy])),
    heading(capital(answer.diagnosis.name), " ", share(first)),
    others.map((code) => h("p", { class: "other" }, S.result.or, " ", h("strong", {}, classOf(model, code).name), " ", share(code))),
    mixLine(answer, actions));
}

const mixLine = (answer, actions) => h("p", { class: "soft small mix" }, mixWords(answer.case_mix), " ",
  button(S.mix.change, actions.mix, { class: "link", disabled: !actions.mix, "aria-label": S.mix.changeLabel }));

function refusal(item, model) {
  return h("div", { class: "verdict" }, heading(verdict(item, model)), h("p", {}, item.error?.message ?? item.answer.why));
}

export function bar(share) {
  const length = h("i", { style: `width: ${Math.max(share * 100, 0.4)}%` });
  return h("td", { class: "bar", "aria-hidden": "true" }, share !== null && h("span", {}, length));
}

function bars(item, model, actions) {
  const { answer } = item;
  const rows = orderOf(answer).map(([code, share], place) => {
    const { name, malignancy: kind } = classOf(model, code);
    const plausible = isReadable(item) && answer.prediction_set?.includes(code);
    const marks = [S.result.kinds[kind], plausible && S.result.inSet].filter(Boolean).join(", ");
    return h("tr", { class: [kind, isReadable(item) && place === 0 && "chosen", plausible && "plausible"].filter(Boolean).join(" ") },
      h("th", { scope: "row" }, dot(), capital(name), h("span", { class: "visually-hidden" }, ` (${marks})`)),
      bar(share), h("td", { class: "number" }, percent(share)));
  });
  const head = (text) => h("th", { scope: "col" }, text);
  const table = h("table", { class: "bars" },
    h("caption", { class: isReadable(item) ? "visually-hidden" : "unreliable" }, isReadable(item) ? S.result.probabilities : S.result.unreliable),
    h("thead", { class: "visually-hidden" }, h("tr", {}, head(S.result.className), h("td", {}), head(S.result.probability))),
    h("tbody", {}, rows));
  const kinds = ["malignant", "premalignant", "benign"].filter((kind) => model.classes.some(({ malignancy }) => malignancy === kind));
  return h("div", { class: isReadable(item) ? "shares" : "shares doubtful" }, table,
    isUnfamiliar(item) && [h("p", { class: "small" }, S.result.unreliableNote), mixLine(answer, actions)],
    kinds.length > 0 && h("p", { class: "legend soft small", "aria-hidden": "true" },
      kinds.map((kind) => h("span", { class: kind }, dot(), S.result.kinds[kind]))),
    !model.calibrated && h("p", { class: "small" }, S.result.notCalibrated));
}

function likelySet(answer, model) {
  if (!answer.prediction_set?.length) return null;
  const level = percent(model.prediction_set_level);
  return h("div", { class: "fact" }, h("h3", {}, S.result.set), h("p", { class: "set" }, capital(list(answer.prediction_set, model))),
    level && h("p", { class: "soft small" }, fill(S.result.setNote, { level })));
}

function why(item, state) {
  // The heat map of one class, over the same picture.
  const layer = h("canvas", { width: 512, height: 512, class: "heat", "aria-hidden": "true" });
  const options = orderOf(item.answer).map(([code]) => h("option", { value: code }, capital(classOf(state.model, code).name)));
  const choice = h("select", { id: "heat-class" }, options);
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
  const under = item.bitmap ? canvasOf(item, 512, { role: "img", "aria-label": S.heat.alt }) : h("p", {}, S.result.noPicture);
  return h("div", { class: "fact" }, h("h3", {}, S.heat.heading),
    h("div", { class: "why" }, h("figure", { class: "viewport" }, under, layer),
      h("div", { class: "heat-controls" },
        h("label", { class: "choice" }, h("span", {}, S.heat.choice), choice),
        h("label", { class: "slider" }, h("span", {}, S.heat.opacity), slider), note)));
}

function details(item, model) {
  const { answer } = item;
  const { referral, novelty, quality, case_mix: mix } = answer;
  const rows = (pairs) => h("table", { class: "plain" }, h("tbody", {}, pairs.map(([name, value]) => h("tr", {},
    h("th", { scope: "row" }, name), h("td", { class: "number" }, value)))));
  const share = (key) => /_share$|_border$/.test(key);
  const { plain, ...codes } = classOf(model, answer.diagnosis.code);
  const point = isReadable(item) && referral?.operating_point && [
    h("h3", {}, S.details.point),
    rows([[S.details.threshold, percent(referral.threshold, 1)],
      ...(referral.sensitivity === null ? [] : [[S.details.sensitivity, percent(referral.sensitivity, 1)], [S.details.specificity, percent(referral.specificity, 1)]])]),
    h("p", { class: "soft small" }, fill(S.details.pointNote, { point: referral.operating_point }))];
  return h("details", { class: "more" }, h("summary", {}, S.details.open),
    h("h3", {}, S.details.status), h("p", {}, answer.why),
    answer.reasons.length > 0 && h("ul", { class: "reasons" }, answer.reasons.map(({ text }) => h("li", {}, text))),
    point,
    isReadable(item) && plain && [h("h3", {}, fill(S.details.diagnosis, { name: answer.diagnosis.name })), h("p", {}, plain),
      h("p", { class: "codes" }, [answer.diagnosis.code, codesOf(codes)].filter(Boolean).join("  ·  "))],
    quality && [h("h3", {}, S.details.picture), rows([
      ...(novelty ? [[S.details.novelty, fill(S.details.noveltyOf, { score: novelty.score.toFixed(2), threshold: novelty.threshold.toFixed(2) })]] : []),
      ...Object.entries(quality).map(([key, value]) => [S.details.quality[key] ?? key, share(key) ? percent(value) : value.toFixed(2)])])],
    h("h3", {}, S.details.shares), rows(Object.entries(mix.shares).map(([code, value]) => [capital(classOf(model, code).name), percent(value, 1)])),
    h("h3", {}, S.details.model), h("p", {}, `${answer.model.name} ${answer.model.version} · ${model.software}`), h("p", {}, model.scope),
    h("p", { class: "digest soft small" }, fill(S.details.digest, { sha256: answer.model.sha256 })),
    h("p", { class: "soft small" }, fill(S.details.took, { ms: answer.elapsed_ms.toFixed(0) })));
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
