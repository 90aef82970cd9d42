// A plot of some lines over time (uPlot), with the same values as a table.
import { html, Component } from './vendor/standalone.module.js';
import { date, number, time, visible } from './parts.js';

const HEIGHT = 190, ROWS = 48;
// Light: those of the report of a burn-in. Both found by a search for the largest least distance (ΔE*ab 41 and 36; 31 and 30
// under Machado's simulations of eyes without red, green or blue cones) at a contrast of at least 3.3 and 4 on the ground. From
// the ninth line on, the same colours with dashes.
const COLOURS = {
  light: ['#5a00ff', '#ff4b0f', '#780f87', '#3c9669', '#871e00', '#e13cf0', '#2d4b4b', '#b478b4'],
  dark: ['#735dff', '#fec208', '#56f7f9', '#d6433c', '#9ed9a1', '#c597fd', '#b55893', '#fefa8e'],
};
const DASHES = [[], [7, 4], [2, 3], [10, 3, 2, 3]];
const darkness = matchMedia('(prefers-color-scheme: dark)');
const values = (line) => line.values.filter((value) => value !== null && value !== undefined);
const short = (value) => number(value, value !== null && Math.abs(value) < 10 && value % 1 ? 1 : 0);

/** The numbers at an axis, all in thousands where one has to be. */
const amounts = (all) => {
  const by = Math.max(...all.map(Math.abs)) >= 10000 ? 1000 : 1;
  return all.map((value) => `${Number((value / by).toPrecision(4))}${by > 1 && value ? ' k' : ''}`);
};

/** The places of values that stand alone, which no line goes through. */
const alone = (plot, series) => plot.data[series].reduce((found, value, at, all) => {
  if ((value ?? null) !== null && (all[at - 1] ?? null) === null && (all[at + 1] ?? null) === null) found.push(at);
  return found;
}, []);

export class Plot extends Component {
  constructor() {
    super();
    this.state = { table: false };
    this.box = null;
    this.again = () => this.make();
  }

  componentDidMount() {
    this.observer = new ResizeObserver(() => this.fit());
    this.observer.observe(this.box);
    darkness.addEventListener('change', this.again);
    this.make();
  }

  componentWillUnmount() {
    this.observer.disconnect();
    darkness.removeEventListener('change', this.again);
    this.plot?.destroy();
  }

  shouldComponentUpdate(next, state) { return state !== this.state || next.lines.some((line, at) => line.values !== this.props.lines[at]?.values) || next.lines.length !== this.props.lines.length || next.at !== this.props.at; }

  componentDidUpdate(before) {
    const same = before.lines.length === this.props.lines.length && before.lines.every((line, at) => line.name === this.props.lines[at].name);
    if (!same || !this.plot) return void this.make();
    const { min, max } = this.plot.scales.x, { at } = this.props, step = at[1] - at[0];
    const zoomed = min > before.at[0] || max < before.at.at(-1);
    const goesOn = zoomed && Math.abs(at[0] - before.at[0]) <= 2 * step && step === before.at[1] - before.at[0];
    this.plot.setData(this.data(), !goesOn);
    if (goesOn) this.plot.redraw();
  }

  /** The whole of the time ends with the latest mark, which may be newer than the latest values. */
  until(first, last) {
    const { at, marks } = this.props;
    return [first, first === at[0] && last === at.at(-1) ? Math.max(last, marks?.[0]?.at_s || 0) : last];
  }

  data() { return [this.props.at, ...this.props.lines.map((line) => line.values)]; }

  fit() {
    const width = Math.floor(this.box?.clientWidth || 0);
    if (this.plot && width > 0 && width !== this.plot.width) this.plot.setSize({ width, height: HEIGHT });
  }

  make() {
    this.plot?.destroy();
    const style = getComputedStyle(this.box), ink = style.getPropertyValue('--soft').trim(), rule = style.getPropertyValue('--rule').trim();
    const family = style.fontFamily, font = `11px ${family}`;
    const axis = { stroke: ink, font, grid: { stroke: rule, width: 1 }, ticks: { stroke: rule, width: 1 } };
    const colours = COLOURS[darkness.matches ? 'dark' : 'light'];
    this.plot = new uPlot({
      width: Math.max(200, this.box.clientWidth), height: HEIGHT, padding: [15, null, null, null], legend: { show: false }, cursor: { drag: { x: true, y: false }, points: { show: false } },
      scales: { x: { range: (_, first, last) => this.until(first, last) }, y: { range: (_, low, high) => (low === null ? [0, 1] : [Math.min(0, low), Math.max(high * 1.05, high > 0 ? 0 : 1, 0.001)]) } },
      axes: [{ ...axis, values: (_, splits, __, ___, step) => splits.map((at) => label(at, step)), space: 70, size: 26 }, { ...axis, size: 52, values: (_, splits) => amounts(splits) }],
      series: [{}, ...this.props.lines.map((line, at) => {
        const place = line.place ?? at;
        return { label: line.name, stroke: colours[place % 8], dash: DASHES[Math.floor(place / 8) % DASHES.length], width: 1.3, points: { show: false, filter: alone, size: 5 } };
      })],
      hooks: { draw: [(plot) => this.draw(plot, ink, family)], setCursor: [(plot) => this.told(plot.cursor.idx)] },
    }, this.data(), this.box);
    this.keys(colours);
  }

  /** The marks of events: a line and its number. */
  draw(plot, ink, family) {
    const { ctx, bbox } = plot;
    ctx.save();
    ctx.strokeStyle = ctx.fillStyle = ink;
    [ctx.textAlign, ctx.textBaseline] = ['center', 'alphabetic'];
    ctx.font = `${11 * devicePixelRatio}px ${family}`; // uPlot scales its own
    ctx.setLineDash([2, 3]);
    let last = Infinity; // the latest come first
    for (const { at_s: at, mark } of this.props.marks || []) {
      const x = Math.round(plot.valToPos(at, 'x', true));
      if (x < bbox.left || x > bbox.left + bbox.width) continue;
      ctx.beginPath();
      ctx.moveTo(x, bbox.top);
      ctx.lineTo(x, bbox.top + bbox.height);
      ctx.stroke();
      if (last - x <= 16 * devicePixelRatio) continue;
      ctx.fillText(mark, (last = x), bbox.top - 3 * devicePixelRatio); // above: it is lost among many lines
    }
    ctx.restore();
  }

  /** The swatches of the legend, drawn as the lines are. */
  keys(colours) {
    this.legend?.querySelectorAll('line').forEach((key, at) => {
      const place = this.props.lines[at].place ?? at;
      key.style.stroke = colours[place % 8];
      key.style.strokeDasharray = DASHES[Math.floor(place / 8) % DASHES.length].join(' ');
    });
  }

  /** The values below the pointer, in the legend. */
  told(at) {
    this.legend?.querySelectorAll('.value').forEach((place, line) => {
      const value = at === null || at === undefined ? null : this.props.lines[line]?.values[at];
      place.textContent = value === null || value === undefined ? '' : ` ${short(value)}`;
    });
    if (this.when) this.when.textContent = at === null || at === undefined ? '' : ` at ${date(this.props.at[at] * 1000)}`;
  }

  summary() {
    return this.props.lines.slice(0, 8).map((line) => {
      const found = values(line);
      return found.length ? `${line.name}: latest ${short(found.at(-1))}, from ${short(Math.min(...found))} to ${short(Math.max(...found))}` : `${line.name}: nothing known`;
    }).join('; ');
  }

  render({ title, lines, at }, { table }) {
    const step = Math.max(1, Math.ceil(at.length / ROWS));
    const fine = at.length > 1 && at[1] - at[0] < 60;
    const rows = table ? at.map((_, index) => index).filter((index) => index % step === 0 || index === at.length - 1) : [];
    return html`<figure><figcaption>${title}<span class="quiet" ref=${(node) => { this.when = node; }}></span>
      <button class="small" aria-expanded=${table} onClick=${() => this.setState({ table: !table })}>${table ? 'Hide the table' : 'Show as table'}<span class="unseen">: ${title}</span></button></figcaption>
      <div class="plot" role="img" aria-label=${`${title}. ${this.summary()}`} ref=${(node) => { this.box = node; }}></div>
      ${lines.length > 1 && html`<div class="legend" aria-hidden="true" ref=${(node) => { this.legend = node; }}>${lines.map((line) => html`<span><svg viewBox="0 0 24 6"><line x1="0" y1="3" x2="24" y2="3" /></svg>${visible(line.name)}<span class="value"></span></span>`)}</div>`}
      ${table && html`<div class="scrolls tall" role="region" tabindex="0" aria-label=${`${title} as a table`}><table><caption class="unseen">${title}</caption>
        <thead><tr><th scope="col">Time</th>${lines.map((line) => html`<th scope="col" class="n">${visible(line.name)}</th>`)}</tr></thead>
        <tbody>${rows.map((row) => html`<tr key=${row}><th scope="row">${(fine ? time : date)(at[row] * 1000)}</th>${lines.map((line) => html`<td class="n">${short(line.values[row] ?? null)}</td>`)}</tr>`)}</tbody></table></div>`}</figure>`;
  }
}

function label(at, step) {
  const when = new Date(at * 1000), two = (value) => String(value).padStart(2, '0');
  if (step >= 86400) return date(when).split(',')[0];
  const clock = `${two(when.getHours())}:${two(when.getMinutes())}`;
  return step < 60 ? `${clock}:${two(when.getSeconds())}` : clock;
}
