import { z } from "zod";

/** Where a rank takes the rows that other ranks of its group send to its experts. */
export const ExchangeEndpoint = z.object({
  host: z.string().min(1),
  port: z.int().min(1).max(65535),
  /** Boot id and IPC namespace of the host; ranks with the same value exchange rows through shared memory. */
  hostKey: z.string().min(1).max(200),
});
export type ExchangeEndpoint = z.infer<typeof ExchangeEndpoint>;

/** The group a rank steps in. A group lives for one epoch: with another member it is another group. */
export const Membership = z.object({
  epoch: z.int().min(1),
  /** Numbers of the worker's ranks that are in it, rising. */
  members: z.array(z.int().min(0)).min(1),
  /** Of the expert map in use. */
  mapVersion: z.int().min(0),
});
export type Membership = z.infer<typeof Membership>;

/** How a rank's last group ended, told until it is in another. */
export const LostGroup = z.object({
  epoch: z.int().min(1),
  /** Number of the rank that did not do its part in time; null where nobody can tell. */
  guilty: z.int().min(0).nullable(),
});
export type LostGroup = z.infer<typeof LostGroup>;
