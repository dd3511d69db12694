/** Grafana's units. */
export type PanelUnit = "reqps" | "s" | "short" | "percentunit" | "Bps" | "bytes" | "ops" | "none";

export interface Query {
  readonly expr: string;
  /** Name of a line, in Grafana's form: `{{model}}`. */
  readonly legend: string;
}

export interface Panel {
  readonly title: string;
  /** What one sees, and what to make of it. */
  readonly about: string;
  readonly unit: PanelUnit;
  readonly queries: readonly Query[];
  /** Lines add up to a whole. */
  readonly stacked?: boolean;
}

/** One dashboard. */
export interface Board {
  /** Of its address in Grafana and of its file. */
  readonly name: string;
  readonly title: string;
  readonly panels: readonly Panel[];
}

const PANELS_PER_ROW = 2;
const WIDTH = 24 / PANELS_PER_ROW;
const HEIGHT = 8;

/** The dashboard as Grafana reads it. */
export function grafanaBoard({ name, title, panels }: Board): object {
  return {
    title: `Margay: ${title}`,
    uid: `margay-${name}`,
    schemaVersion: 39,
    refresh: "30s",
    time: { from: "now-1h", to: "now" },
    tags: ["margay"],
    templating: { list: [{ name: "datasource", type: "datasource", query: "prometheus" }] },
    links: [{ type: "dashboards", tags: ["margay"], title: "Margay", asDropdown: true }],
    panels: panels.map(grafanaPanel),
  };
}

function grafanaPanel({ title, about, unit, queries, stacked }: Panel, index: number): object {
  // biome-ignore lint/suspicious/noTemplateCurlyInString: a variable of Grafana
  const datasource = { type: "prometheus", uid: "${datasource}" };
  return {
    id: index + 1,
    type: "timeseries",
    title,
    description: about,
    datasource,
    gridPos: {
      h: HEIGHT,
      w: WIDTH,
      x: (index % PANELS_PER_ROW) * WIDTH,
      y: Math.floor(index / PANELS_PER_ROW) * HEIGHT,
    },
    fieldConfig: {
      defaults: { unit, min: 0, custom: stacked ? { stacking: { mode: "normal" }, fillOpacity: 30 } : {} },
      overrides: [],
    },
    targets: queries.map(({ expr, legend }, at) => ({
      refId: String.fromCharCode("A".charCodeAt(0) + at),
      expr,
      legendFormat: legend,
      datasource,
    })),
  };
}
