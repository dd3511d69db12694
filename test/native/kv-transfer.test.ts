import { describe } from "vitest";
import { testNativeClaims } from "../support/native-claims.ts";

describe("between two pools", () => {
  testNativeClaims(
    "kv_transfer",
    [],
    [
      "pages arrive whole over shared memory",
      "pages arrive whole over tcp",
      "a receiver without shared memory is reached over tcp",
      "what the receiver has is not sent, over shared memory",
      "what the receiver has is not sent, over tcp",
      "a prefix hit of the sender goes at once",
      "many sequences of two senders at once over shared memory",
      "many sequences of two senders at once over tcp",
      "refusals reach the sender over shared memory",
      "refusals reach the sender over tcp",
      "deadlines pass on both sides",
      "an aborted transfer releases its blocks and ends once",
      "both ends stop promptly in the middle of a transfer",
      "a lost connection is made again twice",
      "a damaged page is sent again twice",
      "a silent receiver holds blocks until the deadline and never the engine",
      "nobody but the owner can write or cut a pool",
      "bad targets are refused",
    ],
  );
});

describe("a receiver among bad peers", () => {
  testNativeClaims(
    "kv_refusals",
    [],
    [
      "a page with one thing wrong is refused by its cause",
      "broken framing and foreign peers end their connection only",
      "whichever bit of a head is turned, the frame is refused",
      "used handles and late pages are refused, duplicates not written",
      "mapped pages are checked before and after the copy",
      "a block reused during the copy is never taken for whole",
    ],
  );
});

describe("a receiver whose peers die or stop", () => {
  testNativeClaims(
    "kv_lost_peers",
    [],
    [
      "a peer killed in mid page leaves nothing behind",
      "a peer stopped in mid page, then continued, writes into nobody's block",
      "a stopped sender, continued, writes into nobody's block over shared memory",
      "a stopped sender, continued, writes into nobody's block over tcp",
    ],
  );
});

describe("nothing is waited for without end:", () => {
  testNativeClaims(
    "kv_waits",
    [],
    [
      "a connection that is never made is given up",
      "a greeting that is never answered is given up, over tcp",
      "a greeting that is never answered is given up, over shared memory",
      "a peer that does not greet is closed",
      "a peer that pauses in mid frame is closed, its sequence ends at its own deadline",
      "a peer that pauses in mid page keeps nobody from the blocks",
      "a peer that reads no answers is closed, others are served",
      "a receiver that answers no pages is left for a new connection",
    ],
  );
});
