import { expect, test } from "vitest";
import { GatewayId, RequestId } from "#protocol/ids.ts";
import { AttemptMemory } from "#service/attempt-memory.ts";
import { FakeClock } from "../support/fake-clock.ts";

function head(requestId: string, attempt: number) {
  return { requestId: RequestId.parse(requestId), attempt, owner: GatewayId.parse("gw1") };
}

test("an ending is known for its attempt, supersedes earlier ones and says nothing of later ones", () => {
  const memory = new AttemptMemory<string>(new FakeClock());
  memory.note(head("a", 2), "cancelled");
  expect(memory.recall(head("a", 1))).toBe("superseded");
  expect(memory.recall(head("a", 2))).toBe("cancelled");
  expect(memory.recall(head("a", 3))).toBeNull();
  expect(memory.recall(head("b", 0))).toBeNull();
});

test("a late ending of an earlier attempt does not overwrite a later one's", () => {
  const memory = new AttemptMemory<string>(new FakeClock());
  memory.note(head("a", 2), "done");
  memory.note(head("a", 1), "cancelled");
  expect(memory.recall(head("a", 2))).toBe("done");
});

test("endings are forgotten after a minute, and the oldest first when there are too many", async () => {
  const clock = new FakeClock();
  const memory = new AttemptMemory<string>(clock);
  memory.note(head("old", 0), "done");
  await clock.advance(59_000);
  expect(memory.recall(head("old", 0))).toBe("done");
  memory.note(head("young", 0), "done");
  await clock.advance(2_000);
  expect(memory.recall(head("old", 0))).toBeNull();
  expect(memory.recall(head("young", 0))).toBe("done");
  for (let i = 0; i < 4_200; i++) memory.note(head(`r${i}`, 0), "done");
  expect(memory.recall(head("young", 0))).toBeNull();
  expect(memory.recall(head("r4199", 0))).toBe("done");
});
