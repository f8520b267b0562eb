// Asks for the server's token when it wants one.
import { dialog, h } from "./dom.js";
import { S } from "./strings.js";

export function askToken(again) {
  return new Promise((resolve) => {
    const input = h("input", { type: "password", id: "token", autocomplete: "off", required: true });
    const form = h("form", {}, h("p", { class: "soft" }, S.token.text), again ? h("p", { class: "complaint", role: "alert" }, S.token.wrong) : null,
      h("label", { class: "field" }, h("span", {}, S.token.label), input), h("div", { class: "row" }, h("button", { type: "submit", class: "primary" }, S.token.send)));
    const node = dialog(S.token.heading, form);
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      resolve(input.value.trim());
      node.close();
    });
    node.addEventListener("close", () => resolve(null));
    input.focus();
  });
}
