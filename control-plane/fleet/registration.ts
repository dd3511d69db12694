import type { ModelCard } from "#protocol/model-card.ts";
import type { Hello } from "#protocol/worker.ts";
import type { FleetSnapshot, Rank } from "./fleet.ts";

/** Characters of a hash that a sentence shows. */
const SHOWN = 12;

/** Why a rank may never join this fleet, as a sentence; null: it may. A rank must be like the others of its worker. */
export function judgeHello(fleet: FleetSnapshot, hello: Hello): string | null {
  const { rank, ranks, experts, rankId } = hello;
  if (rank >= ranks) return `${rankId} is rank ${rank} of a worker of ${ranks}`;
  if (ranks > 1 && ranks > experts) {
    return `${rankId} would be one of ${ranks} ranks: more than the model's ${experts} experts`;
  }
  return unlikeItsWorker(fleet, hello);
}

function unlikeItsWorker(fleet: FleetSnapshot, hello: Hello): string | null {
  for (const other of fleet.ranks.values()) {
    if (other.workerId !== hello.workerId || other.rankId === hello.rankId) continue;
    const differs = differenceOf(hello.model, other.model);
    if (differs !== null) return `${hello.rankId} cannot join ${other.rankId}: ${differs}`;
    if (other.ranks !== hello.ranks || other.role !== hello.role) {
      return `${hello.rankId} says that its worker has ${hello.ranks} ${hello.role} ranks, ${other.rankId} says ${other.ranks} ${other.role} ranks`;
    }
  }
  return null;
}

/**
 * Why a rank may not join yet, as a sentence: it can exchange KV with no rank of the other role that takes work, though there
 * are some. null: it may. `newcomers` are ranks put off for the same reason: two of one new version join together, and until
 * then the old one, which is whole, goes on.
 */
export function lacksPartner(fleet: FleetSnapshot, hello: Hello, newcomers: readonly Hello[]): string | null {
  const fits = ({ role, model }: Hello) => role !== hello.role && differenceOf(hello.model, model) === null;
  if (newcomers.some((other) => other.model.name === hello.model.name && fits(other))) return null;
  const opposite: Rank[] = [];
  for (const other of fleet.ranks.values()) {
    const serves = other.state !== "lost" && other.state !== "draining";
    if (serves && other.role !== hello.role && other.model.name === hello.model.name) opposite.push(other);
  }
  let reason: string | null = null;
  for (const other of opposite) {
    const differs = differenceOf(hello.model, other.model);
    if (differs === null) return null;
    reason ??= `KV cannot pass between ${hello.rankId} and ${other.rankId}: ${differs}`;
  }
  return reason;
}

/** What keeps KV made for one from being read for the other; null: nothing. */
function differenceOf(mine: ModelCard, theirs: ModelCard): string | null {
  if (mine.numerics !== theirs.numerics) {
    return `its numerics are ${mine.numerics}, the other's ${theirs.numerics}`;
  }
  if (mine.modelHash !== theirs.modelHash) {
    return `its model hash is ${mine.modelHash.slice(0, SHOWN)}, the other's ${theirs.modelHash.slice(0, SHOWN)}`;
  }
  if (mine.layout !== theirs.layout) {
    return `its pages have the layout ${mine.layout}, the other's ${theirs.layout}`;
  }
  if (mine.pageBytes !== theirs.pageBytes) {
    return `its pages have ${mine.pageBytes} bytes, the other's ${theirs.pageBytes}`;
  }
  return null;
}
