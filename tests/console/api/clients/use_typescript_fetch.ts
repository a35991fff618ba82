// Does with OpenAPI Generator's TypeScript client what a person does: URL and token are the arguments.
import {
  Configuration,
  DeadEventsApi,
  HistoryApi,
  ProblemDocumentFromJSON,
  ResponseError,
  SendingAgainApi,
  WebhooksApi,
  type ProblemDocument,
  type WebhookDraft,
} from './client';

declare const process: { argv: string[]; exitCode: number };

const [basePath, accessToken] = process.argv.slice(2);
const configuration = new Configuration({ basePath, accessToken });
const webhooks = new WebhooksApi(configuration);
const deadEvents = new DeadEventsApi(configuration);
const again = new SendingAgainApi(configuration);
const history = new HistoryApi(configuration);

function check(holds: boolean, seen: unknown): void {
  if (!holds) throw new Error(JSON.stringify(seen));
}

async function problemOf(request: Promise<unknown>): Promise<ProblemDocument> {
  try {
    await request;
  } catch (error) {
    if (error instanceof ResponseError) return ProblemDocumentFromJSON(await error.response.json());
    throw error;
  }
  throw new Error('the request succeeded');
}

async function main(): Promise<void> {
  const draft: WebhookDraft = {
    name: 'Generated',
    org: 'luma@AdobeOrg',
    sandbox: 'prod',
    url: 'https://hooks.luma.example/f',
    channels: ['email'],
    auth: { type: 'jwt', sign: { algorithm: 'HS256', key: { value: 'k'.repeat(32) } } },
    signing: { secrets: [{ value: 'whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw' }] },
    headers: { 'X-Environment': 'prod', 'X-Api-Key': { value: 'secret' } },
    timeout: '10s',
  };
  const made = await webhooks.createWebhook({ webhookDraft: draft });
  check(made.version === 1, made);
  const read = await webhooks.getWebhookRaw({ id: made.id });
  const edited = await webhooks.replaceWebhook({
    id: made.id,
    ifMatch: read.raw.headers.get('ETag')!,
    webhookDraft: { ...(await read.value())._configuration, name: 'Edited' },
  });
  check(edited.name === 'Edited' && edited.version === 2, edited);
  check(edited._configuration.headers?.['X-Environment'] === 'prod', edited);
  const tested = await webhooks.testWebhook({ id: made.id, sampleEvent: {} });
  check(tested.verdict === 'delivered', tested);
  const listed = await webhooks.listWebhooks({ text: 'edited', channel: 'email' });
  check(listed.items.map((one) => one.name).join() === 'Edited', listed);
  const found = await history.searchHistory({ historySearchOrder: { id: 'r-1' } });
  check(found.items.map((one) => one.requestId).join() === 'r-1', found);
  const tenant = { org: 'luma@AdobeOrg', sandbox: 'prod' };
  const dead = await deadEvents.listDeadEvents({ ...tenant, reasons: ['rejected'], since: new Date('2026-01-02') });
  const id = dead.items[0].id;
  check((await deadEvents.getDeadEvent({ id })).reason === 'rejected', dead);
  const job = await again.redrive({ redriveOrder: { ...tenant, events: { select: 'ids', ids: [id] } } });
  check((await again.getRedrive({ id: job.id })).total === 1, job);
  const resent = (await again.resend({ id: made.id, resendRequest: { eventIds: ['msg_1'] } })).items[0];
  check((await again.stopRedrive({ id: resent.id })).state === 'stopped', resent);
  const jobs = (await again.listRedrives({})).items.map((one) => one.id);
  check(jobs.includes(job.id) && jobs.includes(resent.id), jobs);
  check((await webhooks.pauseWebhook({ id: made.id })).paused, made);
  const absent = await problemOf(webhooks.getWebhook({ id: '00000000-0000-0000-0000-000000000000' }));
  check(absent.status === 404, absent);
  const refused = await problemOf(
    webhooks.createWebhook({ webhookDraft: { ...draft, sandbox: 'dev', url: 'ftp://hooks.luma.example' } }),
  );
  check(refused.errors?.map((one) => one.pointer).join() === '/url', refused);
  console.log('done');
}

main().catch(async (error: unknown) => {
  console.log(error instanceof ResponseError ? await error.response.text() : error);
  process.exitCode = 1;
});
