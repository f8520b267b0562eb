// How common each diagnosis is: chosen here, kept in this browser, sent with each image.
import { button, capital, dialog, h } from "./dom.js";
import { fill, S } from "./words.js";

const SETTING = "dermlens-case-mix";
const KNOWN = ["equal", "training"];

export function chosenMix(model) {
  // What was chosen: { name, shares? }; the server's own mix when nothing was, or when it does not fit this model.
  const own = { name: model.case_mix.name, isServers: true };
  try {
    const kept = JSON.parse(localStorage.getItem(SETTING));
    if (KNOWN.includes(kept?.name)) return { name: kept.name };
    const fits = model.classes.every(({ code }) => kept?.shares?.[code] > 0) && Object.keys(kept.shares).length === model.classes.length;
    return kept?.name === "own" && fits ? { name: "own", shares: kept.shares } : own;
  } catch {
    return own;
  }
}

// The parameter of the API; null leaves it to the server.
export const parameterOf = ({ name, shares, isServers }) => (isServers ? null : name === "own" ? JSON.stringify(shares) : name);

function keep(mix) {
  try {
    if (mix.isServers) localStorage.removeItem(SETTING);
    else localStorage.setItem(SETTING, JSON.stringify(mix));
  } catch {
    // nothing can be stored: the choice holds until the page is closed
  }
}

export function openMix(model, now, use) {
  const radio = (value, label) => h("label", { class: "check" },
    h("input", { type: "radio", name: "mix", value, checked: value === chosen, onchange: follow }), label);
  const servers = KNOWN.includes(model.case_mix.name) ? null : "server";
  const chosen = now.isServers ? servers ?? now.name : now.name;
  const start = now.shares ?? Object.fromEntries(Object.entries(model.training_mix.shares).map(([code, share]) => [code, Number((share * 100).toPrecision(2))]));
  const fields = model.classes.map(({ code, name }) => h("label", { class: "part" }, h("span", {}, capital(name)),
    h("input", { type: "number", name: code, min: 0.0001, max: 1e9, step: "any", required: true, value: start[code] })));
  const own = h("fieldset", { class: "parts" }, h("p", { class: "soft small" }, S.mix.ownHelp), fields);
  const form = h("form", { class: "mix-form" }, h("p", { class: "soft" }, S.mix.help),
    servers && radio("server", fill(S.mix.server, { name: model.case_mix.name })),
    ["equal", "training", "own"].map((value) => radio(value, S.mix.choices[value])), own,
    h("div", { class: "row" }, h("button", { type: "submit", class: "primary" }, S.mix.use), button(S.close, () => node.close())));
  function follow() {
    own.hidden = own.disabled = form.elements.mix.value !== "own";
  }
  follow();
  const node = dialog(S.mix.heading, form);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const { value } = form.elements.mix;
    const shares = () => Object.fromEntries(model.classes.map(({ code }) => [code, form.elements[code].valueAsNumber]));
    const mix = value === "server" ? { name: model.case_mix.name, isServers: true } : value === "own" ? { name: "own", shares: shares() } : { name: value };
    keep(mix);
    node.close();
    use(mix);
  });
}
