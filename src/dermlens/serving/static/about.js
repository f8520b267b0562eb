// What the tool is and is not, how good it is, and where its limits are: the server's own words and figures.
import { capital, dialog, h } from "./dom.js";
import { S } from "./strings.js";

const figure = ({ value, low, high }) => `${value.toFixed(3)} [${low.toFixed(3)}, ${high.toFixed(3)}]`;
const list = (texts) => h("ul", {}, texts.map((text) => h("li", {}, text)));

function figures(model) {
  const rows = Object.entries(model.metrics).map(([name, found]) => h("tr", {}, h("th", { scope: "row" }, S.about.names[name] ?? name), h("td", { class: "number" }, figure(found))));
  if (!rows.length) return null;
  return [h("h3", {}, S.about.figures), h("p", { class: "soft" }, S.about.figuresText(model.tested_on.images, model.tested_on.lesions)), h("table", { class: "plain" }, h("tbody", {}, rows))];
}

function classes(model) {
  return h("dl", { class: "classes" }, model.classes.map(({ name, malignancy, plain, icd10, icd11 }) => [
    h("dt", { class: malignancy }, h("b", { class: "dot", "aria-hidden": "true" }), capital(name), h("span", { class: "soft small" }, ` ${S.result.kinds[malignancy]}`)),
    h("dd", {}, plain, h("span", { class: "soft small" }, ` ${S.result.icd(icd10, icd11)}`))]));
}

export function openAbout(model) {
  const node = dialog(S.about.heading,
    h("p", {}, model.scope),
    h("div", { class: "two" },
      h("div", {}, h("h3", {}, S.about.is), list(S.about.isText)),
      h("div", {}, h("h3", {}, S.about.isNot), list(S.about.isNotText))),
    model.not_tested_on.length ? [h("h3", {}, S.about.notTested), list(model.not_tested_on.map(capital))] : null,
    figures(model),
    h("h3", {}, S.about.privacy), h("p", {}, S.about.privacyText),
    h("h3", {}, S.about.classes), classes(model),
    model.card ? h("details", {}, h("summary", {}, S.about.card), h("pre", { tabIndex: 0 }, model.card)) : null,
    h("p", { class: "soft small" }, S.about.api));
  node.classList.add("about");
}
