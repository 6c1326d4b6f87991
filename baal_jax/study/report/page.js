"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const strategies = data.strategies;
  const state = { hidden: new Set(), metric: data.metrics.length ? data.metrics[0].name : null, seeds: false };
  const visible = () => strategies.map((_, i) => i).filter((i) => !state.hidden.has(i));
  document.documentElement.classList.add("scripted");

  // Everything is made by these two, and text is only ever text: no name in the data can become markup.
  const NS = "http://www.w3.org/2000/svg";
  function fill(node, attributes, children) {
    for (const [name, value] of Object.entries(attributes || {})) {
      if (name === "style") Object.assign(node.style, value);
      else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else if (value !== null && value !== undefined) node.setAttribute(name, value);
    }
    node.append(...[children ?? []].flat().filter((child) => child !== null && child !== undefined));
    return node;
  }
  const html = (tag, attributes, children) => fill(document.createElement(tag), attributes, children);
  const svg = (tag, attributes, children) => fill(document.createElementNS(NS, tag), attributes, children);

  const finite = (value) => value !== null && value !== undefined;
  const number = (value, digits = 3) => {
    if (!finite(value)) return "–";
    const size = Math.abs(value);
    if (size >= 1e6 || (size > 0 && size < 1e-3)) return value.toExponential(1).replace("-", "−");
    const places = size >= 1000 ? 0 : size >= 100 ? 1 : size >= 10 ? 2 : digits;
    return value.toFixed(places).replace("-", "−");
  };
  const whole = (value) => (finite(value) ? String(Math.round(value)).replace(/\B(?=(\d{3})+$)/g, "\u202f") : "–");
  const percent = (value) => `${(value * 100).toFixed(value < 0.0995 ? 1 : 0)} %`;
  const extent = (values) => values.filter(finite).reduce((e, v) => [Math.min(e[0], v), Math.max(e[1], v)], [Infinity, -Infinity]);

  function ticks(low, high, count) {
    const rough = (high - low) / Math.max(count, 1);
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 2.5, 5, 10].find((s) => s * power >= rough * 0.999) * power;
    const places = Math.max(0, -Math.floor(Math.log10(step) + 1e-9) + (Math.abs(step / power - 2.5) < 1e-9 ? 1 : 0));
    const values = [];
    for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k++) values.push(k * step);
    return values.map((value) => [value, Math.abs(value) >= 1000 ? whole(value) : value.toFixed(places).replace("-", "−")]);
  }

  const swatch = (i) => svg("svg", { class: "swatch", viewBox: "0 0 30 12", "aria-hidden": "true" }, [
    svg("path", { d: "M1 6H29", style: { stroke: strategies[i].colour }, class: "line", "stroke-dasharray": strategies[i].dash }),
    svg("path", { d: strategies[i].marker, transform: "translate(15 6)", style: { fill: strategies[i].colour }, class: "marker" }),
  ]);

  const redraws = [];
  const redraw = () => redraws.forEach((draw) => draw());

  // A chart of curves with bands: axes, read-out by pointer or by arrow keys.
  function lineChart(host, spec) {
    if (!host) return;
    let at = null;
    const readout = html("div", { class: "readout", hidden: "" });
    const spoken = html("div", { class: "quiet", role: "status" });
    function draw() {
      const { curves, label } = spec();
      const shown = visible().filter((i) => curves[i]);
      const width = Math.max(host.clientWidth, 240), height = Math.round(Math.min(Math.max(width * 0.46, 250), 430));
      const points = shown.flatMap((i) => curves[i].mean);
      let [low, high] = extent(points);
      if (!(low <= high)) {
        host.replaceChildren(html("p", { class: "missing" }, "No curve to show: every strategy is switched off or has no value."));
        return;
      }
      // A band of few seeds may be many times as high as the curves: it is cut off at their own height.
      const room = Math.max(high - low, Math.abs(high) * 1e-3, 1e-9);
      const bounds = extent(shown.flatMap((i) => (state.seeds && curves[i].seeds ? curves[i].seeds.flat() : [...curves[i].low, ...curves[i].high])));
      low = Math.max(Math.min(bounds[0], low), low - room);
      high = Math.min(Math.max(bounds[1], high), high + room);
      const pad = Math.max(high - low, room * 0.1) * 0.05;
      low -= pad; high += pad;
      const yTicks = ticks(low, high, height / 64);
      const left = 14 + 7 * Math.max(...yTicks.map((tick) => tick[1].length)), right = 12, top = 30, bottom = 42;
      let [first, last] = extent(shown.flatMap((i) => curves[i].x));
      if (first === last) { first -= 0.5; last += 0.5; }
      const x = (value) => left + ((value - first) / (last - first)) * (width - left - right);
      const y = (value) => top + ((high - value) / (high - low)) * (height - top - bottom);
      const path = (xs, ys) => {
        let d = "", pen = "M";
        xs.forEach((value, r) => {
          if (finite(value) && finite(ys[r])) { d += `${pen}${x(value).toFixed(1)} ${y(ys[r]).toFixed(1)}`; pen = "L"; } else pen = "M";
        });
        return d;
      };
      const clip = `clip-${host.id}`;
      // All bands lie under all lines.
      const below = shown.map((i) => {
        const c = curves[i], s = strategies[i], group = svg("g", { "data-strategy": i });
        const inside = c.x.map((_, r) => r).filter((r) => finite(c.low[r]) && finite(c.high[r]));
        if (state.seeds && c.seeds) {
          c.seeds.forEach((seed, k) => group.append(svg("path", { class: "seed", d: path(c.labels ? c.labels[k] : c.x, seed), style: { stroke: s.colour } })));
        } else if (inside.length) {
          const there = inside.map((r) => `${x(c.x[r]).toFixed(1)} ${y(c.high[r]).toFixed(1)}`);
          const back = inside.reverse().map((r) => `${x(c.x[r]).toFixed(1)} ${y(c.low[r]).toFixed(1)}`);
          group.append(svg("path", { class: "band", d: `M${there.join("L")}L${back.join("L")}Z`, style: { fill: s.colour } }));
        }
        return group;
      });
      const above = shown.map((i) => {
        const c = curves[i], s = strategies[i], group = svg("g", { "data-strategy": i });
        group.append(svg("path", { class: "line", d: path(c.x, c.mean), "stroke-dasharray": s.dash, style: { stroke: s.colour } }));
        const every = Math.ceil(c.x.length / (width / 45));
        c.x.forEach((value, r) => {
          if (finite(value) && finite(c.mean[r]) && (r % every === 0 || r === c.x.length - 1)) group.append(svg("path", { class: "marker", d: s.marker, transform: `translate(${x(value).toFixed(1)} ${y(c.mean[r]).toFixed(1)})`, style: { fill: s.colour } }));
        });
        return group;
      });
      const xTicks = ticks(first, last, width / 75);
      const rule = svg("line", { class: "rule", y1: top, y2: height - bottom, visibility: "hidden" });
      const picture = svg("svg", {
        viewBox: `0 0 ${width} ${height}`, width, height, role: "img", tabindex: "0",
        "aria-label": `${label} against labels, ${shown.length} strategies; arrow keys read the values out`,
      }, [
        svg("defs", {}, svg("clipPath", { id: clip }, svg("rect", { x: left - 6, y: top - 6, width: width - left - right + 12, height: height - top - bottom + 6 }))),
        ...yTicks.flatMap(([value, text]) => [
          svg("line", { class: "grid", x1: left, x2: width - right, y1: y(value), y2: y(value) }),
          svg("text", { x: left - 8, y: y(value) + 4, "text-anchor": "end" }, text),
        ]),
        svg("line", { class: "axis", x1: left, x2: width - right, y1: height - bottom, y2: height - bottom }),
        ...xTicks.map(([value, text]) => svg("text", { x: x(value), y: height - bottom + 18, "text-anchor": "middle" }, text)),
        svg("text", { class: "title", x: left, y: 14 }, label),
        svg("text", { class: "title", x: width - right, y: height - 5, "text-anchor": "end" }, "labels"),
        rule, svg("g", { "clip-path": `url(#${clip})` }, [...below, ...above]),
      ]);
      const stops = [...new Set(shown.flatMap((i) => curves[i].x).filter(finite))].sort((a, b) => a - b);
      const close = () => { at = null; readout.hidden = true; rule.setAttribute("visibility", "hidden"); };
      function show(index, speak) {
        at = Math.min(Math.max(index, 0), stops.length - 1);
        const here = stops[at];
        const rows = shown.map((i) => [i, curves[i].x.indexOf(here)]).filter(([i, r]) => r >= 0 && finite(curves[i].mean[r]))
          .sort(([i, r], [j, s]) => curves[j].mean[s] - curves[i].mean[r]);
        const interval = (c, r) => (finite(c.low[r]) && finite(c.high[r]) ? `${number(c.low[r])} to ${number(c.high[r])}` : "one seed");
        rule.setAttribute("x1", x(here)); rule.setAttribute("x2", x(here)); rule.setAttribute("visibility", "visible");
        readout.replaceChildren(html("b", {}, `${whole(here)} labels`), html("table", {}, rows.map(([i, r]) => html("tr", {}, [
          html("td", {}, [swatch(i), strategies[i].name]), html("td", {}, number(curves[i].mean[r])), html("td", {}, interval(curves[i], r)),
        ]))));
        readout.hidden = false;
        const scale = host.clientWidth / width, place = x(here) * scale, room = readout.offsetWidth + 14;
        readout.style.left = `${Math.max(0, place + room < host.clientWidth ? place + 14 : place - room < 0 ? (host.clientWidth - readout.offsetWidth) / 2 : place - room)}px`;
        readout.style.top = place + room < host.clientWidth || place - room >= 0 ? `${top}px` : `${height - bottom + 26}px`;
        if (speak) spoken.textContent = `${whole(here)} labels: ${rows.map(([i, r]) => `${strategies[i].name} ${number(curves[i].mean[r])}`).join(", ")}`;
      }
      fill(picture, {
        onpointermove: (event) => {
          const box = picture.getBoundingClientRect(), px = (event.clientX - box.left) * (width / box.width);
          show(stops.reduce((best, value, k) => (Math.abs(x(value) - px) < Math.abs(x(stops[best]) - px) ? k : best), 0));
        },
        onpointerleave: close, onblur: close,
        onkeydown: (event) => {
          const move = { ArrowRight: (at ?? -1) + 1, ArrowLeft: (at ?? stops.length) - 1, Home: 0, End: stops.length - 1 }[event.key];
          if (move !== undefined) { event.preventDefault(); show(move, true); } else if (event.key === "Escape") close();
        },
      });
      const focused = host.contains(document.activeElement);
      host.replaceChildren(picture, readout, spoken);
      close();
      if (focused) picture.focus();
    }
    let known = 0;
    new ResizeObserver(() => { if (host.clientWidth !== known) { known = host.clientWidth; draw(); } }).observe(host);
    redraws.push(draw);
    draw();
  }

  // Small multiples: one picture a strategy, all with the same axes.
  function multiples(host, each) {
    if (!host) return;
    const draw = () => host.replaceChildren(...visible().map((i) => {
      const one = each(i);
      return one && html("figure", { "data-strategy": i }, [
        html("figcaption", {}, [html("b", {}, [swatch(i), strategies[i].name]), html("span", {}, one.note)]), one.picture,
      ]);
    }).filter(Boolean));
    redraws.push(draw);
    draw();
  }

  function frame(label, xTicks, yTicks, xTitle, yTitle, marks) {
    const x = (value) => 30 + value * 160, y = (value) => 130 - value * 112;
    return svg("svg", { viewBox: "0 0 200 160", role: "img", "aria-label": label }, [
      ...yTicks.flatMap(([at, text]) => [
        svg("line", { class: "grid", x1: 30, x2: 190, y1: y(at), y2: y(at) }),
        svg("text", { x: 25, y: y(at) + 3.5, "text-anchor": "end" }, text),
      ]),
      ...marks(x, y),
      svg("line", { class: "axis", x1: 30, x2: 190, y1: y(0), y2: y(0) }),
      ...xTicks.map(([at, text]) => svg("text", { x: x(at), y: 144, "text-anchor": "middle" }, text)),
      svg("text", { x: 110, y: 158, "text-anchor": "middle" }, xTitle),
      svg("text", { x: 30, y: 9 }, yTitle),
    ]);
  }

  function choice(options, current, change) {
    const buttons = options.map(([value, text]) => html("button", {
      type: "button", "aria-pressed": String(value === current),
      onclick: () => { buttons.forEach((b, k) => b.setAttribute("aria-pressed", String(options[k][0] === value))); change(value); },
    }, text));
    return html("span", { class: "choice" }, buttons);
  }

  function pulldown(text, options, change) {
    const box = html("select", { onchange: (event) => change(Number(event.target.value)) }, options.map((name, i) => html("option", { value: i }, name)));
    return html("label", {}, [text, box]);
  }

  function slider(host, change) {
    if (!host) return () => 0;
    const last = Math.max(data.rounds - 1, 0);
    let now = last;
    const out = html("output", {});
    const say = () => { out.textContent = now === last ? `round ${now}, the last` : `round ${now}`; };
    host.append(html("label", {}, ["Round", html("input", { type: "range", min: 0, max: last, value: last, oninput: (event) => { now = Number(event.target.value); say(); change(); } })]), out);
    say();
    return () => now;
  }

  // Legend: one switch a strategy, for all figures.
  for (const button of document.querySelectorAll(".legend button")) {
    button.addEventListener("click", () => {
      const i = Number(button.dataset.strategy), on = state.hidden.has(i);
      if (on) state.hidden.delete(i); else state.hidden.add(i);
      button.setAttribute("aria-pressed", String(on));
      redraw();
    });
  }

  // Learning curves.
  if (state.metric !== null) {
    const labels = Object.fromEntries(data.metrics.map((m) => [m.name, m.label]));
    const names = data.metrics.map((m) => m.name);
    const change = (k) => { state.metric = names[k]; redraw(); };
    $("curve-controls").append(
      names.length > 6 ? pulldown("Metric", names.map((n) => labels[n]), change) : choice(names.map((n, k) => [k, labels[n]]), 0, change),
      choice([[false, "Mean and 95 % band"], [true, "Every seed"]], false, (value) => { state.seeds = value; redraw(); }),
    );
    lineChart($("curve-chart"), () => ({ curves: data.curves[state.metric], label: labels[state.metric] }));
  }
  data.scores.forEach((curve, i) => {
    if (!curve || !$("score-charts")) return;
    const host = html("div", { class: "chart" });
    $("score-charts").append(host);
    lineChart(host, () => ({ curves: data.scores.map((one, k) => (k === i ? one : null)), label: strategies[i].name }));
  });

  // Which classes were queried.
  multiples($("queried"), (i) => {
    const { shares, pool } = data.queried, names = data.classes, own = shares[i], high = Math.max(...shares.flat(), ...(pool || []), 1e-9);
    const few = names.length <= 20, row = few ? 16 : 120 / names.length, left = few ? 64 : 6;
    const scale = (value) => (value / high) * (190 - left);
    const short = (name) => (name.length > 10 ? `${name.slice(0, 9)}…` : name);
    const picture = svg("svg", { viewBox: `0 0 200 ${Math.ceil(row * names.length) + 4}`, role: "img", "aria-label": `share of queries by class: ${names.map((n, c) => `${n} ${number(own[c])}`).join(", ")}` },
      names.map((name, c) => svg("g", {}, [
        svg("title", {}, `${name}: ${percent(own[c])}${pool ? `, pool ${percent(pool[c])}` : ""}`),
        few ? svg("text", { x: left - 6, y: c * row + 11.5, "text-anchor": "end" }, short(name)) : null,
        svg("rect", { class: "bar", x: left, y: c * row + row * 0.15, width: Math.max(scale(own[c]), 0.5), height: row * 0.7, style: { fill: strategies[i].colour } }),
        pool ? svg("line", { x1: left + scale(pool[c]), x2: left + scale(pool[c]), y1: c * row, y2: (c + 1) * row, style: { stroke: "var(--ink)" }, "stroke-width": 1.5 }) : null,
      ])));
    return { picture, note: "" };
  });

  // Entropies of the pool.
  const entropyRound = slider(data.entropy.some(Boolean) ? $("entropy-round") : null, redraw);
  multiples($("entropy"), (i) => {
    const rows = data.entropy[i], row = rows && rows[Math.min(entropyRound(), rows.length - 1)];
    if (!row || !row.some(finite)) return null;
    const high = Math.max(...data.entropy.filter(Boolean).map((rounds) => Math.max(...(rounds[Math.min(entropyRound(), rounds.length - 1)] || []).map((v) => v ?? 0))), 1e-9);
    const end = data.classes ? Math.log(data.classes.length) : 1, wide = 1 / row.length;
    return {
      note: "",
      picture: frame(`${strategies[i].name}: shares of the pool by entropy, ${row.map((v) => number(v)).join(" ")}`,
        [[0, "0"], [0.5, number(end / 2, 2)], [1, number(end, 2)]], [[0, "0"], [1, percent(high)]],
        data.classes ? "entropy (nats)" : "entropy, as a share of its maximum", "of the pool",
        (x, y) => row.map((value, b) => svg("rect", { class: "bar", x: x(b * wide) + 0.4, y: y((value ?? 0) / high), width: 160 * wide - 0.8, height: ((value ?? 0) / high) * 112, style: { fill: strategies[i].colour } }))),
    };
  });

  // Reliability.
  const reliabilityRound = slider(data.reliability.some(Boolean) ? $("reliability-round") : null, redraw);
  multiples($("reliability"), (i) => {
    const own = data.reliability[i];
    if (!own) return null;
    const r = Math.min(reliabilityRound(), own.ece.length - 1), { colour, marker } = strategies[i];
    const bins = own.num_examples[r].map((n, b) => [n, own.confidence[r][b], own.accuracy[r][b]]).filter(([n, c, a]) => n > 0 && finite(c) && finite(a));
    const most = Math.max(...bins.map(([n]) => n), 1), even = [[0, "0"], [0.5, "0.5"], [1, "1"]];
    return {
      note: `ECE ${number(own.ece[r])}`,
      picture: frame(`${strategies[i].name}: ${bins.map(([, c, a]) => `confidence ${number(c, 2)} accuracy ${number(a, 2)}`).join("; ")}`, even, even, "confidence", "accuracy", (x, y) => [
        ...bins.map(([n, c]) => svg("rect", { x: x(c) - 2, y: y((n / most) * 0.22), width: 4, height: (n / most) * 0.22 * 112, style: { fill: "var(--strong)" }, opacity: 0.7 })),
        svg("line", { class: "rule", x1: x(0), y1: y(0), x2: x(1), y2: y(1) }),
        svg("path", { class: "line", d: `M${bins.map(([, c, a]) => `${x(c)} ${y(a)}`).join("L") || "0 0"}`, style: { stroke: colour } }),
        ...bins.map(([, c, a]) => svg("path", { class: "marker", d: marker, transform: `translate(${x(c)} ${y(a)})`, style: { fill: colour } })),
      ]),
    };
  });

  // Queries, round by round.
  const host = $("rounds");
  if (host) {
    const { runs, targets, sheet } = data.queries, names = strategies.map((s) => s.name).filter((name) => (runs[name] || []).length);
    const at = sheet ? new Map(sheet.ids.map((id, k) => [id, k])) : new Map();
    let strategy = 0, seed = 0, all = false;
    if (sheet) host.style.setProperty("--sheet", `url(${sheet.uri})`);
    const long = 58, zoom = sheet ? long / Math.max(sheet.width, sheet.height) : 1;
    function pick(id, score) {
      const name = Object.hasOwn(targets, id) ? targets[id] : null, k = at.get(id), text = `${finite(score) ? number(score) : ""}`;
      const tooltip = `example ${id}${name === null ? "" : `, ${name}`}${text ? `, score ${text}` : ""}`;
      if (k === undefined) return html("li", { class: "pick plain", title: tooltip }, [html("b", {}, name === null ? `#${id}` : name), [name === null ? "" : `#${id}`, text].filter(Boolean).join(" · ")]);
      return html("li", { class: "pick", title: tooltip }, [
        html("i", { role: "img", "aria-label": tooltip, style: {
          width: `${sheet.width * zoom}px`, height: `${sheet.height * zoom}px`, backgroundSize: `${sheet.columns * sheet.width * zoom}px auto`,
          backgroundPosition: `${-(k % sheet.columns) * sheet.width * zoom}px ${-Math.floor(k / sheet.columns) * sheet.height * zoom}px`,
        } }), html("b", {}, name === null ? `#${id}` : name), name === null ? text : `#${id}`, ...(name !== null && text ? [html("br"), text] : []),
      ]);
    }
    const seeds = html("select", { onchange: (event) => { seed = Number(event.target.value); draw(); } });
    function draw() {
      const own = runs[names[strategy]];
      seed = Math.min(seed, own.length - 1);
      seeds.replaceChildren(...own.map((run, k) => html("option", { value: k }, String(run.seed))));
      seeds.value = String(seed);
      const run = own[seed], happened = run.ids.map((ids, r) => [ids, r]).filter(([, r]) => finite(run.before[r])), shown = all ? happened : happened.slice(0, 5);
      host.replaceChildren(...shown.map(([ids, r]) => html("div", { class: "round" }, [
        html("h4", {}, [`Round ${r}`, html("small", {}, `at ${whole(run.before[r])} labels`)]),
        ids.length ? html("ul", { class: "picks" }, ids.map((id, q) => pick(id, run.scores[r][q]))) : html("p", { class: "caption" }, "Nothing was queried."),
      ])), ...(happened.length < run.ids.length ? [html("p", { class: "caption" }, `This run has stopped after round ${happened.length - 1}.`)] : []),
      ...(happened.length > shown.length ? [html("button", { type: "button", onclick: () => { all = true; draw(); } }, `Show all ${happened.length} rounds`)] : []));
    }
    if (names.length) {
      $("query-controls").append(pulldown("Strategy", names, (k) => { strategy = k; draw(); }), html("label", {}, ["Seed", seeds]));
      draw();
    }
  }

  const copy = $("copy");
  if (copy) copy.addEventListener("click", async () => {
    const text = $("raw").textContent;
    try { await navigator.clipboard.writeText(text); copy.textContent = "Copied"; } catch {
      getSelection().selectAllChildren($("raw"));
      copy.textContent = "Selected: press Ctrl+C";
    }
  });
})();
