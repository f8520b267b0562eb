// What an answer says, in words: its first diagnoses, what to do, and for which case mix. Nothing here sorts anew.
import { capital, h, percent } from "./dom.js";
import { fill, S } from "./words.js";

export const SCHEMA = "dermlens/prediction/2";
const NAMED = 3; // diagnoses between which an uncertain answer cannot decide
const DOUBTS = ["many_diagnoses_possible", "low_confidence"]; // what else is said of a read picture is a note on it
const SHAPES = {
  refer: ["M12 2 23.2 21.5H.8Z", "M12 9v6m0 2.6v.4"],
  see_clinician: ["M12 2.5a5 5 0 0 1 0 10a5 5 0 0 1 0-10ZM2.5 22c0-5 4-8 9.5-8s9.5 3 9.5 8Z", ""],
  no_referral: ["M12 1.5a10.5 10.5 0 0 1 0 21a10.5 10.5 0 0 1 0-21Z", "M12 11v6m0-10.2v.4"],
  retake: ["M8.5 4h7l1.8 2.7H21.5v13h-19v-13H6.7Z", "M12 9.5a3.5 3.5 0 0 1 0 7a3.5 3.5 0 0 1 0-7Z"],
  not_assessed: ["M12 1.5a10.5 10.5 0 0 1 0 21a10.5 10.5 0 0 1 0-21Z", "M9 9.3c0-4 6-4 6 0c0 2.2-3 2.2-3 4.7m0 3v.4"],
  error: ["M12 1.5a10.5 10.5 0 0 1 0 21a10.5 10.5 0 0 1 0-21Z", "M8 8l8 8m0-8l-8 8"],
};

export const classOf = (model, code) => model.classes.find((each) => each.code === code) ?? { code, name: code, malignancy: "unknown" };
export const orderOf = (answer) => Object.entries(answer.probabilities); // as it came: the largest first
export const statusOf = (item) => (item.error ? "error" : item.answer.status);
export const isCurrent = (answer) => answer?.schema === SCHEMA;

// A rejected picture has no diagnosis to rely on; an unfamiliar one still shows its probabilities, marked.
export const isReadable = (item) => ["ok", "uncertain"].includes(statusOf(item));
export const isUnfamiliar = (item) => statusOf(item) === "rejected" && adviceOf(item) === "see_clinician";

export function adviceOf(item) {
  // The key of its colour and symbol: the code of the advice, or "error".
  return item.error ? "error" : item.answer.advice?.code ?? "not_assessed";
}

export function headOf(item) {
  // What to do, in a few words.
  if (item.error) return item.error.remedy;
  const { code, text } = item.answer.advice ?? {};
  return S.advice.heads[refusalOf(item) === "no_lesion" ? "no_lesion" : code] ?? text ?? "";
}

function refusalOf(item) {
  if (item.error) return "error";
  if (item.answer.status !== "rejected") return null;
  const code = item.answer.reasons[0]?.code;
  return code === "no_lesion" || code === "unfamiliar" ? code : "unusable";
}

export function between({ diagnosis, prediction_set: possible, probabilities, status }) {
  // The codes named first: the diagnosis, or the two or three between which the model cannot decide.
  if (status !== "uncertain") return [diagnosis.code];
  const codes = Object.keys(probabilities);
  return codes.slice(0, Math.min(NAMED, Math.max(2, possible?.length ?? codes.length)));
}

export function verdict(item, model) {
  // One line for lists, screen readers and pictures.
  const refusal = refusalOf(item);
  if (refusal) return S.result.refusals[refusal];
  const names = between(item.answer).map((code) => (code === item.answer.diagnosis.code ? item.answer.diagnosis.name : classOf(model, code).name));
  const [first, last] = [names.slice(0, -1).join(", "), names.at(-1)];
  return capital(first ? fill(S.result.between, { first, last }) : last);
}

export function list(codes, model) {
  const names = codes.map((code) => classOf(model, code).name);
  const [first, last] = [names.slice(0, -1).join(", "), names.at(-1)];
  return first ? fill(S.result.several, { first, last }) : last;
}

export function mixWords({ name, shares }) {
  const n = Object.keys(shares).length;
  const all = S.mix.counts[n] ?? fill(S.mix.many, { n });
  if (name === "equal") return fill(S.mix.equal, { all });
  if (name === "training") return S.mix.training;
  return name === "own" ? S.mix.own : fill(S.mix.named, { name });
}

export function symbol(key) {
  const node = (tag, props) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(props)) made.setAttribute(name, value);
    return made;
  };
  const [shape, sign] = SHAPES[key] ?? SHAPES.not_assessed;
  const drawn = node("svg", { viewBox: "0 0 24 24", class: "symbol", "aria-hidden": "true" });
  drawn.append(node("path", { d: shape, class: "shape" }), node("path", { d: sign, class: "sign" }));
  return drawn;
}

export function band(item, model) {
  // The advice: what to do with its symbol and colour, and below it why.
  const lines = item.error ? [] : linesOf(item, model);
  return h("div", { class: `advice ${adviceOf(item)}`, role: "group", "aria-label": S.advice.label },
    h("p", { class: "head" }, symbol(adviceOf(item)), h("strong", {}, headOf(item))),
    lines.length > 0 && h("div", { class: "lines" }, lines.map((line) => h("p", {}, line))));
}

function linesOf(item, model) {
  const { advice, malignant_probability: part, referral, reasons } = item.answer;
  const notes = isReadable(item) ? reasons.filter(({ code }) => !DOUBTS.includes(code)).map(({ text }) => text) : [];
  const [share, threshold] = [percent(part, 1), percent(referral?.threshold, 1)];
  if (advice.code === "refer" && part < referral.threshold) return [fill(S.advice.first, { share }), ...notes];
  if (advice.code === "refer") return [fill(S.advice.above, { share, threshold }), ...notes];
  if (advice.code === "no_referral") return [fill(S.advice.below, { share, threshold }), ...grave(item.answer, model), tested(referral), ...notes];
  if (advice.code === "see_clinician") return [S.advice.unfamiliar];
  return refusalOf(item) && refusalOf(item) !== "no_lesion" ? [] : [advice.text];
}

function tested({ sensitivity, specificity }) {
  if (sensitivity === null || specificity === null) return S.advice.untested;
  return fill(S.advice.tested, { sensitivity: percent(sensitivity), specificity: percent(specificity) });
}

function grave({ prediction_set: possible }, model) {
  const codes = (possible ?? []).filter((code) => classOf(model, code).malignancy.endsWith("malignant"));
  return codes.length ? [h("strong", {}, fill(S.advice.grave, { names: capital(list(codes, model)) }))] : [];
}
