import { z } from "zod";

/**
 * Which members of a group hold each real expert (zero-computation experts are held by nobody). Places are those in the
 * group's list of members. Versions rise within a group epoch, from 0.
 */
export const ExpertMap = z.object({
  version: z.int().min(0),
  /** Per expert the places of its holders: at least one, each once. More than one: replicas, who share its rows. */
  owners: z.array(z.array(z.int().min(0))),
});
export type ExpertMap = z.infer<typeof ExpertMap>;

/** What is wrong with a map for a model of `experts` real experts and a group of `members` ranks; null: nothing. */
export function judgeExpertMap(map: ExpertMap, experts: number, members: number): string | null {
  if (members > experts) return `a group of ${members} ranks is more than the model's ${experts} experts`;
  if (map.owners.length !== experts) {
    return `the expert map has ${map.owners.length} experts and the model ${experts}`;
  }
  for (const [expert, owners] of map.owners.entries()) {
    if (owners.length === 0) return `the expert map gives expert ${expert} to no rank`;
    const stranger = owners.find((place) => place >= members);
    if (stranger !== undefined) return `the expert map gives expert ${expert} to rank ${stranger} of ${members}`;
    if (new Set(owners).size < owners.length) return `the expert map gives expert ${expert} to one rank twice`;
  }
  return null;
}
