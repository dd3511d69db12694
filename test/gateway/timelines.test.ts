import { expect, test } from "vitest";
import { MemoryNetwork } from "#protocol/bus/memory-bus.ts";
import type { GatewayId, ModelName, RequestId } from "#protocol/ids.ts";
import { subjects } from "#protocol/subjects.ts";
import { TimelineResponse } from "#protocol/timeline.ts";
import { GatewayBeat } from "#protocol/worker.ts";
import { systemClock, systemRandom } from "#service/clock.ts";
import { newAttempt, type Way } from "../../control-plane/flow/way.ts";
import { ErrorResponse } from "../../control-plane/gateway/response-schema.ts";
import { openTenancy } from "../../control-plane/tenancy/tenancy.ts";
import { type Harness, startHarness } from "../support/gateway-harness.ts";

/** Two control planes, of which the first has served two requests: one of the open tenant, one of somebody else. */
async function replicas() {
  const network = new MemoryNetwork(systemClock, systemRandom);
  const buses = [network.connect("control-plane"), network.connect("control-plane")];
  const open = openTenancy.identify(null).tenant.name;
  const ways = new Map(
    [wayOf("req_ours", open), wayOf("req_theirs", "acme")].map((way) => [way.requestId as string, way]),
  );
  const [first, second] = await Promise.all(
    buses.map((bus, index) =>
      startHarness(async () => ({}), {
        ...{ bus, gatewayId: `gw-${index}` },
        way: (id) => (index === 0 ? (ways.get(id) ?? null) : null),
      }),
    ),
  );
  const beat = { kind: "gateway-beat", gatewayId: "gw-0" as GatewayId, clockMs: systemClock.now() } as const;
  buses[0]!.publish(subjects.gatewayBeat(beat.gatewayId), GatewayBeat, beat);
  return { first: first!, second: second! };
}

function wayOf(requestId: string, tenant: string): Way {
  return {
    ...{ requestId: requestId as RequestId, model: "nano" as ModelName, tenant, trace: null, beganMs: 1_000 },
    ...{ promptTokens: 3, attempts: [newAttempt(1, 1_000, null)] },
    ...{ firstTokenMs: 1_050, endedMs: 1_200, outcome: "ok", generatedTokens: 7 },
  };
}

const asked = (harness: Harness, id: string) => fetch(`${harness.url}/v1/requests/${id}/timeline`);

test("a timeline is told by a control plane that did not serve the request as by the one that did", async () => {
  const { first, second } = await replicas();
  await using _first = first;
  await using _second = second;
  const own = TimelineResponse.parse(await (await asked(first, "req_ours")).json());
  expect(own).toMatchObject({ id: "req_ours", outcome: "ok", first_token_ms: 50, total_ms: 200, generated_tokens: 7 });
  expect(TimelineResponse.parse(await (await asked(second, "req_ours")).json())).toEqual(own);
});

test("another tenant's request, an unknown one and a malformed id are not found anywhere", async () => {
  const { first, second } = await replicas();
  await using _first = first;
  await using _second = second;
  for (const id of ["req_theirs", "req_nobody", "a.b*c", "x".repeat(100)]) {
    for (const harness of [first, second]) {
      const response = await asked(harness, id);
      expect(response.status, id).toBe(404);
      expect(ErrorResponse.parse(await response.json()).error.message).toMatch(/remembers/);
    }
  }
});

test("what a control plane knew that is gone is not found", async () => {
  const { first, second } = await replicas();
  await using _second = second;
  await first[Symbol.asyncDispose]();
  expect((await asked(second, "req_ours")).status).toBe(404);
});
