// What was measured over time: history of the GPUs and of the work, and burn-ins.
import { html, useRef, useState } from './vendor/standalone.module.js';
import { get, save } from './api.js';
import { Plot } from './plot.js';
import { Bar, NONE, Said, State, Table, counted, date, gib, lasting, number, rate, time, useLook, visible, words, WORDS } from './parts.js';

const SPANS = { '1h': '1 hour', '24h': '24 hours', '48h': '48 hours', '90d': '90 days' };
const HISTORY = [
  ['temp_c', 'Temperature, °C', 1], ['utilisation_percent', 'Load, %', 1], ['power_w', 'Power, W', 1],
  ['memory_used_bytes', 'Memory, GiB', 2 ** 30], ['clock_mhz', 'Clock, MHz', 1], ['slowed_percent', 'Slowed down, % of the time', 1],
];
const WORK = [['tokens_per_s', 'Tokens/s'], ['queued', 'Requests that wait'], ['in_flight', 'Requests in slots'], ['failed_per_s', 'Failures/s']];
const chosen = { span: '24h', gpu: '' };

const placeOf = (gpu) => (gpu.host ? `${gpu.host}/${gpu.index ?? '?'}` : gpu.index);  // of a host that joined with its name
const nameOf = (gpu) => `GPU ${placeOf(gpu) ?? gpu.serial ?? gpu.uuid}`;
const scaled = (column, by) => (by === 1 ? column : column.map((value) => (value === null ? null : value / by)));
const seen = (column) => column && column.some((value) => value !== null);

const EVENTS = [
  { name: 'Mark', kind: 'n', cell: (row) => (row.mark ? row.mark : '') },
  { name: 'Time', by: (row) => row.at_s, cell: (row) => date(row.at_s * 1000) },
  { name: 'GPU', by: (row) => row.gpu, cell: (row) => row.gpu },
  { name: 'What', by: (row) => row.kind, cell: (row) => html`${row.kind}${row.signal && html` <span class="quiet">${row.signal}</span>`}` },
  { name: 'Text', cell: (row) => visible(row.text) },
];
const MARKS = 30, LEAST = 30;

/** Both documents from the first step on of which anything is known; they have one grid. */
function known(gpus, work) {
  const columns = [...gpus.gpus.flatMap((gpu) => [gpu.temp_c, gpu.utilisation_percent]), work.host.in_flight];
  const first = Math.max(0, Math.min(...columns.map((column) => column.findIndex((value) => value !== null)).filter((at) => at >= 0), gpus.at_s.length - LEAST));
  const cut = (row) => Object.fromEntries(Object.entries(row).map(([name, value]) => [name, Array.isArray(value) ? value.slice(first) : value]));
  return { gpus: { ...gpus, at_s: gpus.at_s.slice(first), gpus: gpus.gpus.map(cut) }, work: { at_s: work.at_s.slice(first), host: cut(work.host) } };
}

export function History() {
  const [{ span, gpu }, set] = useState(chosen);
  const choose = (part) => { Object.assign(chosen, part); set({ ...chosen }); };
  const latest = useRef(null); // another span is shown when it is there: until then what is open stays open
  const { data: found, problem } = useLook(`history ${span}`, async () => {
    const [gpus, work] = await Promise.all([get('/gpu-history', { span }), get('/work-history', { span })]);
    return known(gpus, work);
  }, 60);
  const data = latest.current = found || latest.current;
  const tools = html`<div class="tools"><div role="group" aria-label="How far back">${Object.entries(SPANS).map(([name, word]) =>
    html`<button class="chip" aria-pressed=${span === name} onClick=${() => choose({ span: name })}>${word}</button>`)}</div>
    ${data && data.gpus.gpus.length > 1 && html`<label>GPU <select value=${gpu} onChange=${(event) => choose({ gpu: event.target.value })}><option value="">all</option>${
      data.gpus.gpus.map((each) => html`<option value=${each.uuid}>${nameOf(each)}</option>`)}</select></label>`}
    <span class="quiet">In a terminal: <code>obatchctl gpus history</code></span></div>`;
  if (!data) return html`${tools}<p class=${problem ? 'is-bad' : 'quiet'}>${problem || '…'}</p>`;
  const { gpus, work } = data;
  const shown = gpus.gpus.filter((each) => !gpu || each.uuid === gpu);
  const names = new Map(gpus.gpus.map((each) => [each.uuid, nameOf(each)]));
  const events = gpus.events.filter((event) => !gpu || event.uuid === gpu).reverse()
    .map((event, at) => ({ ...event, gpu: names.get(event.uuid) || event.serial || event.uuid, mark: at < MARKS ? at + 1 : 0 }));
  const marks = events.filter((event) => event.mark);
  const plots = HISTORY.filter(([name]) => shown.some((each) => seen(each[name])));
  const busy = WORK.filter(([name]) => seen(work.host[name]));
  return html`${tools}${problem && html`<p class="is-bad">${problem}</p>`}
    <div class=${`plots ${found ? '' : 'coming'}`} aria-busy=${!found}>${busy.map(([name, title]) => html`<${Plot} key=${name} title=${title} at=${work.at_s} lines=${[{ name: 'all servers', values: work.host[name] }]} />`)}
    ${plots.map(([name, title, by]) => html`<${Plot} key=${name} title=${title} at=${gpus.at_s} marks=${marks}
      lines=${shown.map((each) => ({ name: nameOf(each), values: scaled(each[name], by), place: gpus.gpus.indexOf(each) }))} />`)}</div>
    ${!plots.length && !busy.length && html`<p class="quiet">Nothing is known of this time yet: the first minute comes two minutes after the start.</p>`}
    <h2>Events</h2>${gpus.more_events && html`<p class="quiet">The latest ${number(gpus.events.length)}; all: <code>obatchctl gpus events</code></p>`}
    <${Table} caption="Events" columns=${EVENTS} rows=${events} id=${(row) => `${row.at_s} ${row.uuid} ${row.kind} ${row.signal} ${row.mark}`} empty="Nothing happened to a GPU in this time." />`;
}

const SERIES = [['tokens_per_s', 'Tokens/s', 1], ['temp_c', 'Temperature, °C', 1], ['power_w', 'Power, W', 1], ['utilisation_percent', 'Load, %', 1],
  ['clock_mhz', 'Clock, MHz', 1], ['memory_used_bytes', 'Memory, GiB', 2 ** 30], ['memory_temp_c', 'Temperature of the memory, °C', 1],
  ['operations_per_s', 'Matrix products, TFLOP/s', 1e12], ['checked_bytes_per_s', 'Memory read back, GB/s', 1e9], ['covered_bytes', 'Memory covered in the phase, GiB', 2 ** 30],
  ['throttled_percent', 'Throttled, % of the time', 1], ['errors_uncorrected', 'Uncorrected memory errors since the beginning', 1], ['errors_corrected', 'Corrected memory errors since the beginning', 1]];

const VERDICTS = [
  { name: 'GPU', by: placeOf, cell: (gpu) => html`<b>${placeOf(gpu)}</b> <span class="quiet wide">${gpu.name}</span>` },
  { name: 'Verdict', by: (gpu) => gpu.verdict, cell: (gpu) => html`<${State} of=${gpu.verdict} />` },
  { name: 'Tokens/s', kind: 'n', by: (gpu) => gpu.work.tokens_per_s, cell: (gpu) => rate(gpu.work.tokens_per_s) },
  { name: 'Load, %', kind: 'n narrow', by: (gpu) => gpu.stress.utilisation_percent, cell: (gpu) => number(gpu.stress.utilisation_percent) },
  { name: 'Power, W', kind: 'n narrow', by: (gpu) => gpu.stress.power_w, cell: (gpu) => number(gpu.stress.power_w) },
  { name: 'Highest °C', kind: 'n', by: (gpu) => gpu.stress.temp_c, cell: (gpu) => number(gpu.stress.temp_c) },
  { name: 'Memory, GiB', kind: 'n wide', by: (gpu) => gpu.stress.vram_bytes, cell: (gpu) => gib(gpu.stress.vram_bytes) },
  { name: 'Output checks', kind: 'n wide', by: (gpu) => gpu.canary.mismatches, cell: (gpu) => (gpu.canary.state === 'on' ? `${number(gpu.canary.checks)}, ${number(gpu.canary.mismatches)} wrong` : NONE) },
];
// Loads beside the model: matrix products, patterns in memory, links. Reports of earlier versions have none.
const fastest = (gpu) => gpu.stress_loads.products.filter((each) => each.operations_per_s !== null).sort((a, b) => b.operations_per_s - a.operations_per_s)[0];
const linkOf = (gpu, peers) => gpu.stress_loads.links.filter((link) => (link.kind === 'to_peer') === peers).sort((a, b) => a.bytes_per_s - b.bytes_per_s)[0];
const inUnit = (value, unit) => (value === undefined || value === null ? NONE : rate(value / unit));
const wrongOf = ({ stress_loads: loads }) => loads.wrong_tiles + loads.wrong_words;
const mostPower = (gpu) => gpu.phases.map((phase) => phase.power_percent).filter((percent) => percent !== null).sort((a, b) => b - a)[0] ?? gpu.stress.power_percent;
// The generation falls while a card is idle, so the higher one counts.
const pcieOf = ({ counters: { pcie_gen: gen, pcie_width: lanes } }) => (gen && lanes ? `gen ${Math.max(gen.start, gen.end)} ×${Math.min(lanes.start, lanes.end)}` : NONE);
const nvlinkErrors = ({ counters }) => Object.entries(counters).filter(([name]) => name.startsWith('nvlink_')).reduce((sum, [, counter]) => (sum ?? 0) + counter.change, null);
const STRESSED = [
  { name: 'GPU', by: placeOf, cell: (gpu) => html`<b>${placeOf(gpu)}</b>` },
  { name: 'TFLOP/s', kind: 'n', by: (gpu) => fastest(gpu)?.operations_per_s, cell: (gpu) => html`${inUnit(fastest(gpu)?.operations_per_s, 1e12)} <span class="quiet">${fastest(gpu)?.precision}</span>` },
  { name: 'Memory, GB/s', kind: 'n wide', by: (gpu) => gpu.stress_loads.memory?.bytes_per_s, cell: (gpu) => inUnit(gpu.stress_loads.memory?.bytes_per_s, 1e9) },
  { name: 'Covered, GiB', kind: 'n', by: (gpu) => gpu.stress_loads.memory?.covered_bytes, cell: (gpu) => gib(gpu.stress_loads.memory?.covered_bytes) },
  { name: 'of what was free, %', kind: 'n wide', by: (gpu) => gpu.stress_loads.memory?.covered_percent, cell: (gpu) => number(gpu.stress_loads.memory?.covered_percent) },
  { name: 'Host, GB/s', kind: 'n', by: (gpu) => linkOf(gpu, false)?.bytes_per_s, cell: (gpu) => inUnit(linkOf(gpu, false)?.bytes_per_s, 1e9) },
  { name: 'Peers, GB/s', kind: 'n', by: (gpu) => linkOf(gpu, true)?.bytes_per_s, cell: (gpu) => inUnit(linkOf(gpu, true)?.bytes_per_s, 1e9) },
  { name: 'PCIe', kind: 'wide', by: pcieOf, cell: pcieOf },
  { name: 'NVLink errors', kind: 'n wide', by: nvlinkErrors, cell: (gpu) => number(nvlinkErrors(gpu)) },
  { name: 'Most power, %', kind: 'n wide', by: mostPower, cell: (gpu) => number(mostPower(gpu)) },
  { name: 'Memory, highest °C', kind: 'n wide', by: (gpu) => gpu.stress.memory_temp_c, cell: (gpu) => number(gpu.stress.memory_temp_c) },
  { name: 'Wrong', kind: 'n', by: wrongOf, cell: (gpu) => html`<span class=${wrongOf(gpu) ? 'is-bad' : ''}>${number(wrongOf(gpu))}</span>` },
];
const wrongPlaces = ({ stress_loads: loads }) => (!loads.wrong.length && !loads.ended ? null : html`${loads.wrong.slice(0, 4).map((each) => html`<span class="is-bad">${visible(each.place)}</span> <span class="quiet">${visible(each.pattern)}: ${each.found}, not ${each.expected} (${time(each.at)})</span><br />`)}${visible(loads.ended)}`);
const wasStressed = (gpu) => gpu.stress_loads && (gpu.stress_loads.products.length || gpu.stress_loads.memory || gpu.stress_loads.links.length);

// Without anything to do, the action is one word.
const reasonsOf = (gpu) => (!gpu.reasons.length ? null : html`${gpu.reasons.slice(0, 4).map((reason) => html`<span class=${reason.consequence === 'fail' ? 'is-bad' : reason.consequence === 'note' ? '' : 'is-warn'}>
  ${reason.consequence}: ${visible(reason.text)}${reason.at ? ` (${time(reason.at)})` : ''}</span><br />`)}${gpu.action.includes(' ') && html`<b>Next:</b> <${Said} text=${gpu.action} />`}`);

const RUNS = [
  { name: 'Run', by: (run) => run.run, cell: (run) => html`<a href=${`#/burnin/${run.run}`}>${run.run}</a>` },
  { name: 'State', by: (run) => run.state, cell: (run) => html`<${State} of=${run.state} />` },
  { name: 'Verdict', by: (run) => run.verdict, cell: (run) => (run.verdict ? html`<${State} of=${run.verdict} />` : NONE) },
  { name: 'Profile', kind: 'narrow', by: (run) => run.profile, cell: (run) => run.profile || NONE },
  { name: 'GPUs', kind: 'n', by: (run) => run.gpus?.length, cell: (run) => number(run.gpus?.length) },
  { name: 'Began', kind: 'wide', by: (run) => run.run, cell: (run) => date(run.started_at) },
  { name: 'End', kind: 'wide', cell: (run) => visible(run.end) },
];

export function Burnin({ which, page }) {
  const { data: list, problem: ofList } = useLook(`runs ${page.status.burnin?.run || ''}`, () => get('/burnin'));
  const run = which || list?.runs[0]?.run;
  const live = run !== undefined && page.status.burnin?.run === run;
  const { data: series, problem } = useLook(`series ${run} ${live}`, () => (run ? get('/burnin/series', { run }) : null), live ? 4 : 0);
  const { data: report, problem: ofReport } = useLook(`verdicts ${run} ${live}`, () => (!run ? null : live ? get('/burnin/status') : get(`/burnin/reports/${run}`)), live ? 10 : 0);
  if (!list) return html`<p class=${ofList ? 'is-bad' : 'quiet'}>${ofList || '…'}</p>`;
  const start = html`<p class="quiet">${live ? html`Stop it: <code>obatchctl burnin stop</code>` : html`Start one: <code>obatchctl burnin start</code>`}</p>`;
  if (!run) return html`<p>No burn-in ran here yet.</p>${start}`;
  const elapsed = live ? page.status.burnin.elapsed_s : report?.elapsed_s, asked = report?.asked_s ?? series?.asked_s;
  const said = [problem, ofReport].filter(Boolean).join('; ');
  return html`<div class="title"><h2>Run ${run}</h2> ${report && html`<${State} of=${report.verdict} word=${live ? `${WORDS[report.verdict]} so far` : undefined} /> <span class="quiet">${visible(report.meaning)}</span>`}</div>
    ${said && html`<p class="is-bad">${visible(said)}</p>`}
    ${asked !== undefined && elapsed !== undefined && html`<div class="big"><${Bar} kind="progress" share=${asked ? elapsed / asked : 0} text=${`${lasting(elapsed)} of ${lasting(asked)} under load${report && report.state !== 'loading' ? `, ${report.state}` : ''}${live && page.status.burnin.loads?.length ? `: ${page.status.burnin.loads.join(' + ')}` : ''}`} /></div>`}
    ${report?.hosts?.filter((each) => each.reason).map((each) => html`<p class="is-warn">${visible(`${each.host || 'This machine'}: ${each.reason}`)}</p>`)}
    ${report?.outliers?.map((text) => html`<p class="is-warn">${visible(text)}</p>`)}
    ${report && html`<${Table} caption="Verdicts" columns=${VERDICTS} rows=${report.gpus} id=${(gpu) => `${gpu.server} ${gpu.uuid}`} note=${reasonsOf} />`}
    ${report?.gpus.some(wasStressed) && html`<h2>Matrix products, memory, links</h2><${Table} caption="Matrix products, memory, links" columns=${STRESSED} rows=${report.gpus} id=${(gpu) => `${gpu.server} ${gpu.uuid}`} note=${wrongPlaces} />`}
    ${series && html`<div class="plots">${SERIES.filter(([name]) => series.gpus.some((gpu) => seen(gpu[name]))).map(([name, title, by]) => html`<${Plot} key=${`${run} ${name}`} title=${title} at=${series.at_s}
      lines=${series.gpus.map((gpu, place) => ({ name: nameOf(gpu), values: scaled(gpu[name], by), place }))} />`)}</div>`}
    <p>${report && html`<button class="small" onClick=${() => save(`/burnin/reports/${run}`, `burnin-${run}.json`).catch((error) => alert(words(error)))}>Save the report</button> `}
      <span class="quiet">As a page that prints: <code>obatchctl burnin report ${run} --html report.html</code></span></p>${start}
    <h2>Runs</h2><${Table} caption="Runs" columns=${RUNS} rows=${list.runs} id=${(each) => each.run} />`;
}
