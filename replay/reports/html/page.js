// Charts, theme and the narrow layout of a report. The heap map is in heap_map.js.
"use strict";

(() => {
  const root = document.documentElement;
  const specs = JSON.parse(document.getElementById("charts").textContent);
  const style = (name) => getComputedStyle(root).getPropertyValue(name).trim();

  function config() {
    const text = style("--text"), soft = style("--soft"), line = style("--line");
    return {
      background: null,
      font: "system-ui, sans-serif",
      view: {stroke: null},
      axis: {labelColor: soft, titleColor: soft, titleFontWeight: "normal", gridColor: line, domainColor: line, tickColor: line, labelFontSize: 12, titleFontSize: 12},
      legend: {labelColor: text, titleColor: soft, labelFontSize: 12},
      text: {color: text, fontSize: 12},
      title: {color: text, subtitleColor: soft},
      header: {labelColor: text, titleColor: soft},
    };
  }

  // Charts of a sweep have their own colours, and a table of those that replace them in the dark theme.
  function themed(spec) {
    const inDark = root.dataset.theme === "dark" ? spec.usermeta.dark : {};
    return JSON.parse(JSON.stringify(spec), (key, value) => key !== "usermeta" && inDark[value] || value);
  }

  // Views below each other need a width in pixels; labels of lines stand to the right of the plot.
  function fitted(spec, width) {
    const copy = JSON.parse(JSON.stringify(spec));
    const plot = Math.max(140, width - (copy.vconcat ? 215 : 110));
    if (copy.vconcat) copy.vconcat.forEach((view) => { view.width = plot; });
    else copy.width = Math.min(plot, 900);
    return copy;
  }

  // The width of labels is known only when they are drawn: a chart that is too wide is drawn again.
  async function drawn(element) {
    const spec = specs[element.dataset.chart], width = element.clientWidth, isFixed = "fixed" in element.dataset;
    const options = {actions: false, renderer: "svg", config: config()};
    const embed = (room) => vegaEmbed(element, isFixed ? themed(spec) : fitted(spec, room), options);
    await embed(width);
    const excess = element.querySelector("svg").getBoundingClientRect().width - width;
    if (excess > 0 && !isFixed) await embed(width - Math.ceil(excess));
    element.dataset.ready = "yes";
  }

  function draw() {
    for (const element of document.querySelectorAll("[data-chart]")) drawn(element);
  }

  function setTheme(name) {
    root.dataset.theme = name;
    draw();
    if (window.heapMapReady) heapMap.recolour();
  }

  const isDark = matchMedia("(prefers-color-scheme: dark)");
  root.dataset.theme = isDark.matches ? "dark" : "light";
  isDark.addEventListener("change", () => setTheme(isDark.matches ? "dark" : "light"));
  document.getElementById("theme").addEventListener("click", () => setTheme(root.dataset.theme === "dark" ? "light" : "dark"));
  let waiting = 0, width = innerWidth;
  addEventListener("resize", () => {
    if (innerWidth === width) return;
    width = innerWidth;
    clearTimeout(waiting);
    waiting = setTimeout(draw, 200);
  });
  draw();
})();
