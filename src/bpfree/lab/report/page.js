// Draws the charts, lets the legend choose rules in all of them at once, and copies the command.
(() => {
  "use strict";
  const specs = JSON.parse(document.getElementById("specs").textContent);
  const options = {
    mode: "vega-lite",
    renderer: "svg",
    actions: false,
    tooltip: { disableDefaultStyle: true },
    expressionFunctions: { asItIs: (value) => value },
  };
  const views = []; // those that follow the legend

  async function draw(id) {
    const { view } = await vegaEmbed(document.getElementById(id), specs[id], options);
    if (specs[id].params?.some((each) => each.name === "chosen")) views.push(view);
  }

  function choose(button) {
    button.setAttribute("aria-pressed", String(button.getAttribute("aria-pressed") !== "true"));
    const pressed = [...document.querySelectorAll('.legend button[aria-pressed="true"]')];
    const chosen = pressed.map((each) => each.dataset.rule);
    for (const view of views) view.signal("chosen", chosen).runAsync();
  }

  async function copy(event) {
    const command = document.getElementById("command");
    try {
      await navigator.clipboard.writeText(command.textContent);
      event.target.textContent = "Copied";
    } catch {
      // No right to the clipboard: select the text, so that one key copies it.
      getSelection().selectAllChildren(command);
    }
  }

  for (const button of document.querySelectorAll(".legend button")) {
    button.addEventListener("click", () => choose(button));
  }
  document.getElementById("copy").addEventListener("click", copy);
  Promise.all(Object.keys(specs).map(draw))
    .then(() => (document.documentElement.dataset.charts = "drawn"))
    .catch((error) => console.error("A chart could not be drawn:", error));
})();
