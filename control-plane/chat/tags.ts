import type { Markers } from "../tokenizer/markers.ts";

const SPELLINGS = {
  thinkOpen: "<longcat_think>",
  thinkClose: "</longcat_think>",
  callOpen: "<longcat_tool_call>",
  callClose: "</longcat_tool_call>",
  keyOpen: "<longcat_arg_key>",
  keyClose: "</longcat_arg_key>",
  valueOpen: "<longcat_arg_value>",
  valueClose: "</longcat_arg_value>",
} as const;

/** The tags that structure an answer, as the text that is parsed spells them. */
export type Tags = Readonly<Record<keyof typeof SPELLINGS, string>>;

/** The tags in plain letters. */
export const SPELLED_TAGS: Tags = SPELLINGS;

/** The tags in sealed text: a tag that the vocabulary has as a marker token is found in its sealed form only. */
export function sealedTags(markers: Markers): Tags {
  return Object.fromEntries(Object.entries(SPELLINGS).map(([name, tag]) => [name, markers.tag(tag)])) as Tags;
}
