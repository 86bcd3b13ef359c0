"use strict";
(() => {
  const runs = JSON.parse(document.getElementById("data").textContent);
  const dashes = [[], [8, 4], [2, 3], [10, 3, 2, 3], [5, 2], [14, 4], [1, 2], [6, 2, 1, 2, 1, 2]];
  const logarithmic = new Set(["noise scale", "noise scale, preconditioned gradient"]);
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const short = (value) => {
    if (value == null) return "";
    const size = Math.abs(value);
    if (size >= 1e6) return +(value / 1e6).toPrecision(3) + "M";
    if (size >= 1e4) return +(value / 1e3).toPrecision(3) + "k";
    return "" + +value.toPrecision(4);
  };
  const charts = [];

  // Return the range of all curves, so that all panels have the same horizontal axis.
  function span(axis) {
    const places = runs.flatMap((run) => Object.values(run.curves)).map((curve) => curve.x[axis]);
    return [Math.min(...places.map((x) => x[0])), Math.max(...places.map((x) => x.at(-1)))];
  }

  function draw(figure, axis) {
    const name = figure.dataset.curve;
    const place = figure.querySelector(".plot");
    const reading = figure.querySelector(".reading");
    place.replaceChildren();
    const shown = runs.map((run, at) => ({ at, run, curve: run.curves[name] })).filter((r) => r.curve);
    if (!shown.length) {
      const text = document.createElement("p");
      text.className = "none";
      text.textContent = "There is nothing to draw. " + runs.map((run) => `${run.name}: ${run.missing[name]}`).join("; ");
      place.append(text);
      return null;
    }
    const whole = span(axis), wide = whole[0] < whole[1];
    // Circles are drawn only if they do not overlap.
    const apart = (x) => x.length < 2 || x.length < 30 && ((x.at(-1) - x[0]) / (whole[1] - whole[0])) * place.clientWidth > 14 * x.length;
    const tables = [], series = [{ label: axis }], bands = [];
    for (const { at, run, curve } of shown) {
      const stroke = colour("--c" + at);
      const step = name === "batch size" ? uPlot.paths.stepped({ align: -1 }) : undefined;
      const width = 2, table = [curve.x[axis], curve.y];
      series.push({ label: run.name, stroke, width, dash: dashes[at], paths: step, points: { show: apart(curve.x[axis]) } });
      if (curve.high.length) {
        table.push(curve.high, curve.low);
        const first = series.length;
        const edge = { stroke: "transparent", width: 0, points: { show: false }, band: true };
        series.push({ ...edge, label: "" }, { ...edge, label: "" });
        bands.push({ series: [first, first + 1], fill: stroke + "33" });
      }
      tables.push(table);
    }
    const data = uPlot.join(tables);
    const ink = colour("--faint"), grid = { stroke: colour("--line"), width: 1 };
    const font = "12px system-ui, sans-serif";
    const decades = (u, ticks) => ticks.map((tick) => (Math.abs(Math.log10(tick) % 1) < 1e-9 ? tick : null));
    const lines = logarithmic.has(name) ? { ...grid, filter: decades } : grid;
    const values = (u, ticks) => ticks.map((tick) => (tick == null ? "" : short(tick)));
    // An axis is as wide as its longest label, such as 0.00075.
    const axisWidth = (u, labels) => 18 + 7 * Math.max(3, ...(labels || []).map((label) => label.length));
    const options = {
      width: place.clientWidth, height: 240, series, bands, padding: [8, 12, 0, 0],
      legend: { show: false },
      cursor: { y: false, drag: { x: true, y: false } },
      scales: { x: { time: false, ...(wide && { range: (u, low, high) => (low === u.data[0][0] && high === u.data[0].at(-1) ? whole : [low, high]) }) }, y: logarithmic.has(name) ? { distr: 3 } : {} },
      axes: [
        { stroke: ink, grid, ticks: grid, font, values, size: 30, label: axis, labelSize: 18, labelFont: font },
        { stroke: ink, grid: lines, ticks: lines, font, values, size: axisWidth },
      ],
      hooks: {
        setCursor: [(u) => {
          const at = u.cursor.idx;
          if (at == null) { reading.textContent = ""; return; }
          const parts = series.map((one, index) => [one, u.data[index][at]])
            .filter(([one, value], index) => index && one.label && !one.band && value != null)
            .map(([one, value]) => `${one.label} ${short(value)}`);
          reading.textContent = `${short(u.data[0][at])} ${axis}: ${parts.join(", ")}`;
        }],
      },
    };
    return new uPlot(options, data, place);
  }

  function redraw() {
    const axis = document.querySelector("input[name=axis]:checked").value;
    charts.splice(0).forEach((chart) => chart && chart.destroy());
    document.querySelectorAll("figure[data-curve]").forEach((figure) => charts.push(draw(figure, axis)));
  }

  document.querySelectorAll("input[name=axis]").forEach((input) => input.addEventListener("change", redraw));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  let width = innerWidth;
  addEventListener("resize", () => { if (innerWidth !== width) { width = innerWidth; redraw(); } });
  redraw();
})();
