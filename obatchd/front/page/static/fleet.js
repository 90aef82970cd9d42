// Every GPU on one screen: what it does, how it is, and what to do about it.
import { html } from './vendor/standalone.module.js';
import { get } from './api.js';
import { Bar, NONE, Said, Spark, State, Table, counted, gib, number, rate, visible } from './parts.js';

const MINUTES = 60;
const load = new Map(), speed = new Map(); // by card and by server: the means of the last minutes, the latest one last
let minute = 0, begun = false;
const cardOf = (gpu) => `${gpu.host || ''} ${gpu.uuid}`; // stand-ins have the same UUIDs on all hosts

/** Add the values of a document to the last hour. */
export function remember(page) {
  const current = Math.floor(Date.now() / 60000);
  const steps = minute ? Math.min(current - minute, MINUTES) : 0;
  minute = current;
  if (steps > 0) for (const each of [...load.values(), ...speed.values()]) for (let step = 0; step < steps; step++) push(each);
  page.gpus.gpus.forEach((gpu) => add(load, cardOf(gpu), gpu.utilisation_percent));
  page.status.servers.forEach((server) => add(speed, server.id, server.tokens_per_s));
  if (!begun) {
    begun = true;
    before().catch(() => { begun = false; });
  }
}

function push(trace) {
  trace.values = [...trace.values.slice(1), null];
  trace.count = 0;
}

function traceOf(traces, name) {
  if (!traces.has(name)) traces.set(name, { values: Array(MINUTES).fill(null), count: 0 });
  return traces.get(name);
}

function add(traces, name, value) {
  if (value === null || value === undefined) return;
  const trace = traceOf(traces, name), last = trace.values[MINUTES - 1];
  const mean = trace.count ? (last * trace.count + value) / (trace.count + 1) : value;
  trace.count += 1;
  if (last === null || Math.round(mean) !== Math.round(last)) trace.values = [...trace.values.slice(0, -1), mean];
}

/** The hour before the page was opened. */
async function before() {
  const [gpus, work] = await Promise.all([get('/gpu-history', { span: '1h' }), get('/work-history', { span: '1h' })]);
  for (const gpu of gpus.gpus) fill(load, cardOf(gpu), gpus.at_s, gpu.utilisation_percent);
  for (const server of work.servers) fill(speed, server.id, work.at_s, server.tokens_per_s);
}

function fill(traces, name, at, column) {
  const trace = traceOf(traces, name), values = [...trace.values];
  at.forEach((second, index) => {
    const place = MINUTES - 1 - (minute - Math.floor(second / 60));
    if (place >= 0 && place < MINUTES && values[place] === null) values[place] = column[index];
  });
  trace.values = values;
}

const memo = new Map(); // rows that stay the same object while nothing in them changes

function rowOf(key, fields) {
  const old = memo.get(key);
  if (old && Object.keys(fields).every((name) => same(old[name], fields[name]))) return old;
  memo.set(key, fields);
  return fields;
}

const same = (a, b) => a === b || (Array.isArray(a) && Array.isArray(b) && a.length === b.length && a.every((each, at) => each === b[at]));

const part = (value, whole) => (value === null || value === undefined || !whole ? null : value / whole);
const all = (servers, name) => servers.reduce((sum, server) => sum + server[name], 0);
const modelOf = (servers) => [...new Set(servers.map((server) => server.loaded?.model || (server.loading ? `${server.loading.model} …` : '')))].filter(Boolean).join(', ');

const inAWord = (server) => (server.state === 'backoff' ? 'down' : server.state);
const Server = ({ row }) => html`${row.servers.map((server) => html`<span title=${server.reason}><${State} of=${inAWord(server)} /></span> `)}${
  !row.servers.length && (row.beside.length ? html`<span class="quiet">with ${row.beside[0].id}</span>` : NONE)}`;
const Restarts = ({ servers }) => (all(servers, 'restarts') ? html` <span class="is-warn">${counted(all(servers, 'restarts'), 'restart')}</span>` : '');

const WORK = [
  { name: 'Server', kind: 'one narrow', by: (row) => row.servers[0]?.state, cell: (row) => html`<${Server} row=${row} /><${Restarts} servers=${row.servers} />` },
  { name: 'Model', kind: 'wide', by: (row) => modelOf(row.servers), cell: (row) => html`<span class="cut" title=${modelOf(row.servers)}>${visible(modelOf(row.servers)) || NONE}</span>` },
  { name: 'Slots', kind: 'bars narrow', by: (row) => all(row.servers, 'in_flight'), cell: (row) => row.servers.length
    ? html`<${Bar} kind="slots" share=${part(all(row.servers, 'in_flight'), all(row.servers, 'slots'))} text=${`${all(row.servers, 'in_flight')} / ${all(row.servers, 'slots')}`} />` : NONE },
  { name: 'Tokens/s', kind: 'n', by: (row) => all(row.servers, 'tokens_per_s'), cell: (row) => (row.servers.length ? rate(all(row.servers, 'tokens_per_s')) : NONE) },
  { name: 'Its last hour', kind: 'plot', cell: (row) => html`<${Spark} values=${row.tokens} />` },
];

const HEALTH = { ok: 0, unknown: 1, warn: 2, quarantine: 3 };
const hot = (gpu) => gpu.slowed ? 'is-bad' : gpu.temp_c >= 85 ? 'is-warn' : '';
const GPUS = [
  { name: 'GPU', by: (row) => row.gpu.index, cell: (row) => html`<span title=${`${row.gpu.name}, ${row.gpu.uuid}, serial ${row.gpu.serial}, ${row.gpu.slot}`}><b>${row.gpu.index ?? NONE}</b>
      <span class="quiet wide"> ${shortly(row.gpu.name)}</span></span>` },
  { name: 'Health', kind: 'one', by: (row) => HEALTH[row.gpu.health], cell: (row) => html`<${State} of=${row.gpu.health} />` },
  { name: 'Load', kind: 'bars', by: (row) => row.gpu.utilisation_percent, cell: (row) => row.gpu.asleep ? html`<span class="quiet">asleep</span>`
    : html`<${Bar} share=${part(row.gpu.utilisation_percent, 100)} text=${row.gpu.utilisation_percent === null ? NONE : `${row.gpu.utilisation_percent} %`} />` },
  { name: 'The last hour', kind: 'plot', cell: (row) => html`<${Spark} values=${row.load} most=${100} />` },
  { name: 'Memory, GiB', kind: 'bars wide', by: (row) => row.gpu.memory_used_bytes, cell: (row) =>
    html`<${Bar} share=${part(row.gpu.memory_used_bytes, row.gpu.memory_total_bytes)} text=${`${gib(row.gpu.memory_used_bytes)} / ${gib(row.gpu.memory_total_bytes)}`} />` },
  { name: '°C', kind: 'n', by: (row) => row.gpu.temp_c, cell: (row) => html`<span class=${hot(row.gpu)}>${number(row.gpu.temp_c)}${row.gpu.slowed ? ' slowed' : ''}</span>` },
  { name: 'Power, W', kind: 'bars narrow', by: (row) => row.gpu.power_w, cell: (row) =>
    html`<${Bar} share=${part(row.gpu.power_w, row.gpu.power_limit_w)} text=${`${number(row.gpu.power_w)}${row.gpu.power_limit_w ? ` / ${number(row.gpu.power_limit_w)}` : ''}`} />` },
  ...WORK,
];
const shortly = (name) => name.replace(/^NVIDIA (GeForce )?/, '');

/** Why a GPU is not as it should be, and what to do. */
function Note({ gpu, servers, away }) {
  const ill = away ? [] : servers.filter((server) => !['ready', 'quarantined', 'stopped'].includes(server.state));
  const said = [gpu.health !== 'ok' && gpu.reason, gpu.lent_until && `lent until ${gpu.lent_until}`, gpu.shared_with && `shared with ${gpu.shared_with}`,
    ...ill.map((server) => `${server.id} is ${inAWord(server)}: ${server.reason}`)].filter(Boolean);
  if (!said.length) return null;
  const why = visible(said.join(' · ')), more = html` <code>obatchctl gpus show ${gpu.host ? `${gpu.host}/${gpu.index}` : gpu.index ?? gpu.uuid}</code>`;
  if (gpu.health === 'ok' || !gpu.action) return html`${why}${gpu.health !== 'ok' && more}`;
  const [first, rest] = [gpu.action.slice(0, sentence(gpu.action)), gpu.action.slice(sentence(gpu.action))];
  const next = html`<span class="is-warn">${why}.</span> <b>Next:</b> <${Said} text=${first} />`;
  return rest ? html`<details><summary>${next} …</summary><${Said} text=${rest} />${more}</details>` : html`${next}${more}`;
}
const noteOf = (row) => (row.gpu.health !== 'ok' || row.gpu.lent_until || row.gpu.shared_with || row.servers.some((server) => !['ready', 'quarantined', 'stopped'].includes(server.state))
  ? Note(row) : null);

const OTHERS = [{ name: 'Name', by: (row) => row.servers[0].id, cell: (row) => html`<b>${row.servers[0].id}</b> <span class="quiet">${row.servers[0].kind}</span>` },
  { name: 'Where', kind: 'wide', cell: (row) => row.servers[0].url }, ...WORK];

/** The end of the first sentence. */
function sentence(text) {
  const at = text.search(/[.:] /);
  return at < 0 ? text.length : (text[at] === ':' ? text.search(/\. |$/) : at) + 1;
}

/** The GPUs of one machine; ``host`` is a joined one, and absent for that of the daemon. */
function Machine({ rows, host, trouble }) {
  const of = host ? html`<h2>${host.name} <${State} of=${host.state} /> <span class="quiet">${visible(host.reason)}</span></h2>` : null;
  const empty = host ? html`It has told of no GPU${trouble ? `: ${visible(trouble)}` : ''}.`
    : html`No GPU is here${trouble ? `: ${visible(trouble)}` : ''}. <code>obatchctl doctor</code> says why, and what to do.`;
  return html`${of}${trouble && rows.length > 0 && html`<p class="is-warn">▲ ${visible(trouble)}</p>`}
    <${Table} caption=${host ? `GPUs of ${host.name}` : 'GPUs'} columns=${GPUS} rows=${rows} id=${(row) => row.gpu.uuid} note=${noteOf} empty=${empty} />`;
}

const troubleOf = (probe) => probe.host ? probe.host.message : probe.state !== 'ok' ? probe.message : probe.kernel_log.problem;

export function Fleet({ page }) {
  const { status, gpus } = page;
  const hosts = status.hosts || [], away = new Set(hosts.filter((host) => host.state === 'away').map((host) => host.name));
  const rows = gpus.gpus.map((gpu) => {
    const on = status.servers.filter((server) => gpu.servers.includes(server.id));
    const servers = on.filter((server) => server.gpu?.uuid === gpu.uuid || gpu.servers.length > 1 || server.gpus.length < 2);
    return rowOf(cardOf(gpu), { gpu, servers, beside: on, away: away.has(gpu.host), load: traceOf(load, cardOf(gpu)).values, tokens: servers.length ? traceOf(speed, servers[0].id).values : [] });
  });
  const known = new Set(gpus.gpus.flatMap((gpu) => gpu.servers));
  const others = status.servers.filter((server) => !known.has(server.id))
    .map((server) => rowOf(server.id, { servers: [server], beside: [], tokens: traceOf(speed, server.id).values }));
  const probes = new Map((gpus.hosts || []).map((probe) => [probe.name, probe]));
  const own = rows.filter((row) => !row.gpu.host);
  return html`${(own.length > 0 || !(others.length || hosts.length)) && html`<${Machine} rows=${own} trouble=${troubleOf(gpus)} />`}
    ${hosts.map((host) => html`<${Machine} key=${host.name} host=${host} rows=${rows.filter((row) => row.gpu.host === host.name)}
      trouble=${probes.has(host.name) && host.state !== 'away' ? troubleOf(probes.get(host.name)) : ''} />`)}
    ${others.length > 0 && html`<h2>${rows.length ? 'Other servers' : 'Servers'}</h2><${Table} caption="Servers" columns=${OTHERS} rows=${others} id=${(row) => row.servers[0].id} />`}
    <p class="quiet">In a terminal: <code>obatchctl gpus</code> to quarantine, release or lend a GPU; <code>obatchctl models</code> to list, pull and remove models;${' '}
      <code>obatchctl doctor</code> to look for what is wrong.</p>`;
}
