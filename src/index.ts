/**
 * bpfimg as a library: images, their JSON, dumps as maps, and live maps.
 *
 * @example
 * const reader = await ImageReader.open(await openInput('bpfmap-data.img'));
 * for await (const entry of reader.entries()) console.log(entry.message.map_id);
 */
export { plugins } from '../plugins/index.js';
export { Btf, type BtfOptions, type BtfType, type Kind as BtfKind } from './btf/btf.js';
export { typeDefinition, typeDefinitions, typeName, typeNamed } from './btf/c.js';
export { type BtfFile, type MapDefinition, readBtfFile } from './btf/elf.js';
export { extractTypes } from './btf/extract.js';
export { SPECIAL, type SpecialField, type SpecialKind, specialFields } from './btf/special.js';
export { type Sink, TypedValueError, type ValueCodec, valueCodec } from './btf/values.js';
export { type CapturedMap, type CaptureOptions, capture } from './capture/capture.js';
export { type DocumentForms, writeDocument } from './dump/document.js';
export { encodeDocument } from './dump/encode.js';
export { type Item, items, type RawItem, rawItems } from './dump/items.js';
export { type Dump, type DumpMap, openDump, openDumpImage } from './dump/model.js';
export { TypeFinder, type TypeOptions } from './dump/types.js';
export { BpfimgError, type ErrorKind, EXIT } from './errors.js';
export { KINDS, type Kind, kindOfMagic, kindOfName } from './image/kinds.js';
export type { Json, JsonObject } from './image/message.js';
export { type Entry, ImageReader } from './image/reader.js';
export { decodeMessage, encodeMessage } from './image/wire.js';
export { bufferInput, Cursor, type Input, openInput, streamInput } from './io/input.js';
export { MemoryOutput, type Output, openOutput } from './io/output.js';
export { type DecodeOptions, type Dialect, decodeImage } from './json/decode.js';
export { encodeImage } from './json/encode.js';
export { JsonReader } from './json/reader.js';
export { KernelError } from './kernel/error.js';
export { LiveMaps, openLive } from './kernel/live.js';
export { BpfMap } from './kernel/map.js';
export { openSys, type Sys } from './kernel/sys.js';
export {
  FULL,
  type ItemSink,
  type ItemSource,
  type MapType,
  MapTypes,
  type Plugin,
  type Report,
  reportText,
  type Work,
} from './maptype.js';
export { type PlannedMap, type PlanOptions, planMap } from './replay/plan.js';
export { type FreshMap, type ReplayOptions, replay } from './replay/replay.js';
export { type Toolkit, toolkit } from './toolkit.js';
export { FINDINGS, type Finding, Verifier } from './verify/verify.js';
