// One job: how far it is, why requests failed, and the answers beside their prompts.
import { html, useState } from './vendor/standalone.module.js';
import { get, save } from './api.js';
import { Actions, End, Progress, isOver, stateOf } from './jobs.js';
import { NONE, State, Table, Text, counted, date, lasting, number, rate, useLook, visible, words } from './parts.js';

const PAGE = 20;
const OUTCOMES = ['succeeded', 'failed', 'cancelled', 'expired'];

const FAILURES = (choose) => [
  { name: 'Cause', by: (row) => row.code, cell: (row) => html`<button class="link" onClick=${() => choose(row.code)} title="Show these answers">${row.code}</button>` },
  { name: 'Requests', kind: 'n', by: (row) => row.requests, cell: (row) => number(row.requests) },
  { name: 'First line', kind: 'n narrow', by: (row) => row.line, cell: (row) => number(row.line) },
  { name: 'Its message', cell: (row) => visible(row.example) },
  { name: 'What to do', cell: (row) => visible(row.advice) },
];

function Failures({ job, choose }) {
  const { data, problem } = useLook(`failures ${job.job} ${job.failed + job.cancelled + job.expired}`, () => get(`/jobs/${job.job}/failures`));
  const [columns] = useState(() => FAILURES(choose));
  if (problem) return html`<p class="is-bad">${problem}</p>`;
  return html`<h2>Failures by cause</h2><${Table} caption="Failures by cause" columns=${columns} rows=${data?.failures || []} id=${(row) => row.code} empty=${data ? 'None.' : '…'} />`;
}

const FACTS = [
  ({ model }) => model && visible(model), ({ server }) => server && visible(server), ({ duration_s: duration }) => duration && `${duration.toFixed(1)} s`,
  ({ response_tokens: tokens, prompt_tokens: before }) => tokens > 0 && `${counted(tokens, 'token')} of answer, ${number(before)} of prompt`,
  ({ attempts }) => attempts > 1 && `${attempts} attempts`, ({ truncated }) => truncated && 'cut at the token limit',
];

function answerOf(record) {
  if (typeof record.response === 'string') return record.response;
  for (const name of ['data', 'message', 'choices', 'embedding', 'embeddings', 'response']) if (record[name] !== undefined) return JSON.stringify(record[name], null, 1);
  return '';
}

function Answer({ result }) {
  const { record } = result;
  const facts = [`line ${number(result.line)}`, ...FACTS.map((fact) => fact(record)).filter(Boolean)].join(' · ');
  const thoughts = record.think || record.thinking;
  return html`<li class="answer"><p class="of"><${State} of=${result.outcome} /> <b>${visible(result.id)}</b> <span class="quiet">${facts}</span></p>
    <div class="pair"><section aria-label="Prompt"><h3>${result.raw ? 'Line of the drop' : 'Prompt'}</h3>${result.prompt === null ? html`<p class="quiet">not kept any more</p>` : html`<${Text} text=${result.prompt} />`}</section>
    <section aria-label="Answer"><h3>${result.outcome === 'succeeded' ? 'Answer' : 'Why there is none'}</h3>
      ${result.outcome === 'succeeded' ? html`<${Text} text=${answerOf(record)} />` : html`<p class="is-bad">${visible(record.code)}: ${visible(record.message)}</p>${
        result.advice && html`<p><b>Next:</b> ${visible(result.advice)}</p>`}${record.response && html`<${Text} text=${answerOf(record)} />`}`}
      ${typeof thoughts === 'string' && thoughts && html`<details><summary>Its reasoning</summary><${Text} text=${thoughts} /></details>`}</section></div></li>`;
}

function Answers({ job, filter, setFilter }) {
  const { outcome, code, after, before } = filter;
  const query = { after, limit: PAGE, outcome, code };
  const { data, problem, again } = useLook(`results ${job.job} ${JSON.stringify(query)}`, () => get(`/jobs/${job.job}/results`, query));
  const counts = { '': OUTCOMES.reduce((sum, name) => sum + job[name], 0), ...Object.fromEntries(OUTCOMES.map((name) => [name, job[name]])) };
  return html`<h2 id="answers">Answers beside their prompts</h2>
    <div class="tools"><div role="group" aria-label="Which answers">${['', ...OUTCOMES].filter((name) => !name || counts[name]).map((name) => html`<button class="chip"
      aria-pressed=${outcome === name && !code} onClick=${() => setFilter({ outcome: name })}>${name || 'all'} <span class="count">${number(counts[name])}</span></button>`)}
      ${code && html`<button class="chip" aria-pressed="true" onClick=${() => setFilter({ outcome: 'failed' })} aria-label=${`only ${code}; show all failed`}>${code} ✕</button>`}</div>
      ${!isOver(job) && html`<button class="small" onClick=${again}>Look again</button>`}</div>
    ${problem && html`<p class="is-bad">${visible(problem)}</p>`}
    ${data && (data.results.length ? html`<ol class="answers">${data.results.map((result) => html`<${Answer} key=${result.at} result=${result} />`)}</ol>`
      : html`<p class="quiet">${isOver(job) ? 'None.' : 'None yet.'}</p>`)}
    <nav class="tools" aria-label="Pages of answers"><button disabled=${!before.length} onClick=${() => setFilter({ outcome, code, after: before.at(-1), before: before.slice(0, -1) })}>← Earlier</button>
      <button disabled=${!data || data.next === null} onClick=${() => { setFilter({ outcome, code, after: data.next, before: [...before, after] }); document.getElementById('answers').scrollIntoView(); }}>Later →</button></nav>`;
}

function Save({ job }) {
  const [said, say] = useState('');
  const one = (name) => async () => {
    say('…');
    try {
      await save(`/jobs/${job.job}/files/${name}`, `${job.job}.${name}`);
      say('');
    } catch (error) { say(words(error)); }
  };
  const files = isOver(job) ? ['results.jsonl', ...(job.failed + job.cancelled + job.expired ? ['errors.jsonl'] : []), 'summary.json'] : ['so-far.jsonl'];
  return html`<p class="save">Save ${files.map((name) => html`<button class="small" onClick=${one(name)}>${name}</button> `)} <span role="status" class="is-bad">${said}</span>
    <span class="quiet">As a table: <code>obatchctl results ${job.job} --format csv</code></span></p>`;
}

const clean = { outcome: '', code: '', after: 0, before: [] };

export function Job({ id, page, again }) {
  const listed = page.jobs.find((job) => job.job === id);
  const { data, problem, again: anew } = useLook(`job ${id} ${listed ? listed.state : ''}`, () => get(`/jobs/${id}`), 2);
  const [filter, set] = useState(clean);
  const setFilter = (wanted) => set({ ...clean, ...wanted });
  if (problem && !data) return html`<p><a href="#/jobs">← Jobs</a></p><p class="is-bad">${visible(problem)}</p>`;
  if (!data) return html`<p class="quiet">…</p>`;
  const job = listed ? { ...data, ...listed, details: data.details, totals: data.totals } : data;
  const done = (action) => { if (action === 'remove') location.hash = '#/jobs'; again(); anew(); };
  const used = job.details?.settings;
  const facts = [
    ['State', html`<${State} of=${stateOf(job)} />`], ['End', html`<${End} job=${job} />`], ['Accepted', date(job.accepted_at)],
    ['Model', visible(job.model || NONE)], ['Requests/s', rate(isOver(job) ? job.totals?.requests_per_s : job.requests_per_s)], ['Tokens/s', rate(isOver(job) ? job.totals?.tokens_per_s : job.tokens_per_s)],
    ...(job.totals ? [['Took', lasting(job.totals.wall_s)], ['Tokens', `${number(job.totals.response_tokens)} answered`]] : []),
    ...(job.energy_j ? [['Energy', `${number(job.energy_j / 3600)} Wh`]] : []), ['Priority', job.priority], ...(job.expires_at ? [['Deadline', date(job.expires_at)]] : []),
    ...(used?.context_length?.length ? [['Context', counted(used.context_length.at(-1), 'token')]] : []), ...(page.administrator ? [['User', job.owner]] : []),
  ];
  const links = [[job.retry_of && [job.retry_of], 'Retry of'], [Array.isArray(job.retries) && job.retries, 'Tried again as']].filter(([jobs]) => jobs);
  return html`<p><a href="#/jobs">← Jobs</a></p><div class="title"><h2>${visible(job.label || job.name)}</h2> <span class="quiet">${job.label ? `${visible(job.name)} · ` : ''}${job.job}</span></div>
    <div class="big"><${Progress} job=${job} /></div><p><${Actions} job=${job} done=${done} /></p>
    <dl class="sum">${facts.map(([name, value]) => html`<div><dt>${name}</dt><dd>${value}</dd></div>`)}</dl>
    ${links.map(([jobs, word]) => html`<p>${word} ${jobs.map((one) => html`<a href=${`#/jobs/${one}`}>${one}</a> `)}</p>`)}
    ${job.notes.length > 0 && html`<ul class="reasons">${job.notes.map((note) => html`<li class=${job.state === 'refused' ? 'why' : ''}>${visible(note)}</li>`)}</ul>`}
    ${job.state !== 'refused' && html`<${Save} job=${job} />`}
    ${job.failed + job.cancelled + job.expired > 0 && html`<${Failures} job=${job} choose=${(code) => setFilter({ outcome: OUTCOMES.includes(code) ? code : 'failed', code: OUTCOMES.includes(code) ? '' : code })} />`}
    ${job.state !== 'refused' && html`<${Answers} job=${job} filter=${filter} setFilter=${setFilter} />`}`;
}
