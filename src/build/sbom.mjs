// The software bill of materials of the package, in CycloneDX: what the bundle carries, and what npm installs with it.
import * as fs from 'node:fs';
import * as path from 'node:path';

/**
 * @param top the project's folder
 * @param bundled names of the packages whose code is in the bundle
 * @returns the document, the same for the same sources
 */
export function billOfMaterials(top, bundled) {
  const read = (name) => JSON.parse(fs.readFileSync(path.join(top, name), 'utf8'));
  const own = read('package.json');
  const { packages } = read('package-lock.json');
  const entry = (name) => packages[`node_modules/${name}`];

  const linux = (name) => entry(name).os === undefined || entry(name).os.includes('linux');
  const needs = (name) => Object.keys({ ...entry(name).dependencies, ...entry(name).optionalDependencies });
  const installed = new Set(Object.keys(own.dependencies));
  for (const name of installed) {
    for (const other of needs(name).filter((one) => entry(one) && linux(one))) installed.add(other);
  }

  const purl = (name, version) => `pkg:npm/${name.replace('@', '%40')}@${version}`;
  const refOf = (name) => purl(name, entry(name).version);
  const part = (name) => {
    const { version, license, integrity, optional = false } = entry(name);
    const [algorithm, digest] = integrity.split('-');
    return {
      type: 'library',
      'bom-ref': refOf(name),
      name,
      version,
      scope: optional ? 'optional' : 'required',
      hashes: [{ alg: algorithm.replace('sha', 'SHA-'), content: Buffer.from(digest, 'base64').toString('hex') }],
      licenses: [{ expression: license }],
      purl: purl(name, version),
      properties: [{ name: 'bpfimg:bundled', value: String(bundled.includes(name)) }],
    };
  };
  const names = [...new Set([...installed, ...bundled])].sort();
  const ref = purl(own.name, own.version);
  return {
    bomFormat: 'CycloneDX',
    specVersion: '1.5',
    version: 1,
    metadata: {
      component: {
        type: 'application',
        'bom-ref': ref,
        name: own.name,
        version: own.version,
        licenses: [{ expression: own.license }],
        purl: ref,
      },
    },
    components: names.map(part),
    dependencies: [
      { ref, dependsOn: [...new Set([...Object.keys(own.dependencies), ...bundled])].sort().map(refOf) },
      ...names.map((name) => ({
        ref: refOf(name),
        dependsOn: needs(name)
          .filter((one) => names.includes(one))
          .map(refOf),
      })),
    ],
  };
}
