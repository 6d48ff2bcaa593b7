import * as fs from 'node:fs';

/** Version of the package, put in by the bundler; read from package.json when run from the sources. */
declare const BPFIMG_VERSION: string | undefined;

/** Version of this bpfimg. */
export const version: string =
  typeof BPFIMG_VERSION === 'string'
    ? BPFIMG_VERSION
    : (JSON.parse(fs.readFileSync(new URL('../../package.json', import.meta.url), 'utf8')) as { version: string })
        .version;
