/** The real dump in fixtures/, and what both crits print for it. */
import * as fs from 'node:fs';

const folder = new URL('../../../fixtures/', import.meta.url);

/** A file of fixtures/, by its path there. */
export const fixture = (name: string): Buffer => fs.readFileSync(new URL(name, folder));

/** Names of the dump's images. */
export const dumpImages: readonly string[] = fs.readdirSync(new URL('flowd/', folder)).sort();
