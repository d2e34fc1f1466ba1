// SPDX-License-Identifier: Apache-2.0
#include "report/style.h"

namespace farskip {

// Colours of the palette differ in lightness too, so that they stay apart in grey and for the colour-blind.
// Red is kept for lost time.
const char* report_style() {
  return R"css(
:root{color-scheme:light dark;--bg:#fff;--fg:#17191d;--dim:#626a76;--rule:#d5dae1;--grid:#e9ecf0;--soft:#f5f6f8;
--k0:#1763c6;--k1:#c8620a;--k2:#12806a;--k3:#a03b94;--k4:#5a6b00;--k5:#0d87a8;--k6:#7a5230;--k7:#6a5acd;
--fw:#8fb4e3;--bw:#3f74bd;--up:#9a8fc4;--win:#3fae8e;--lost:#d43d2f;
--h0:#2c6fbf;--h1:#7fb0e0;--h2:#c5dcf0;--h3:#eceef0;--h4:#f9cfa0;--h5:#ee8f3f;--h6:#c24410}
@media (prefers-color-scheme:dark){:root{--bg:#14161a;--fg:#e6e8eb;--dim:#98a1ae;--rule:#373c45;--grid:#262a31;
--soft:#1c1f25;--k0:#6aa9f7;--k1:#f2994a;--k2:#4cc3a3;--k3:#d98ad0;--k4:#b9c84f;--k5:#56c2e0;--k6:#c79b73;--k7:#a79bf5;
--fw:#44648f;--bw:#6d9fe0;--up:#8377b8;--win:#3fae8e;--lost:#ef5a4a;
--h0:#5b9be6;--h1:#3d6ea6;--h2:#2b4562;--h3:#2a2e35;--h4:#6b4520;--h5:#b5651d;--h6:#f08a3c}}
@media print{:root{color-scheme:light;--bg:#fff;--fg:#000;--dim:#444;--rule:#bbb;--grid:#ddd;--soft:#fff;
--k0:#1763c6;--k1:#c8620a;--k2:#12806a;--k3:#a03b94;--k4:#5a6b00;--k5:#0d87a8;--k6:#7a5230;--k7:#6a5acd;
--fw:#8fb4e3;--bw:#3f74bd;--up:#9a8fc4;--win:#3fae8e;--lost:#d43d2f;
--h0:#2c6fbf;--h1:#7fb0e0;--h2:#c5dcf0;--h3:#eceef0;--h4:#f9cfa0;--h5:#ee8f3f;--h6:#c24410}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--fg);font:14px/1.45 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans","DejaVu Sans",sans-serif;
font-variant-numeric:tabular-nums}
main{max-width:1160px;margin:0 auto;padding:28px 24px 40px}
h1{font-size:26px;line-height:1.2;margin:0;letter-spacing:-.01em;overflow-wrap:anywhere}
h2{font-size:15px;margin:36px 0 8px}
header p{margin:6px 0 0;color:var(--dim);overflow-wrap:anywhere}
figure{margin:30px 0 0;min-width:0}
figcaption{margin-bottom:6px;display:flex;flex-wrap:wrap;gap:2px 8px;align-items:baseline}
figcaption b{font-size:15px;font-weight:600;overflow-wrap:anywhere}
figcaption span,.note,footer{color:var(--dim);font-size:12.5px}
.note{margin:4px 0 0}
.notes{margin:16px 0 0;padding:8px 12px 8px 28px;background:var(--soft);border-left:3px solid var(--k1);overflow-wrap:anywhere}
footer{margin-top:36px;border-top:1px solid var(--rule);padding-top:8px}
.tiles{display:flex;flex-wrap:wrap;margin:20px 0 0;border-top:1px solid var(--rule);border-bottom:1px solid var(--rule);padding:10px 0;gap:10px 28px}
.tiles dt{color:var(--dim);font-size:12px}
.tiles dd{margin:0;font-size:18px;font-weight:600;overflow-wrap:anywhere}
.wide-table{overflow-x:auto;margin-top:20px}
table{border-collapse:collapse;width:100%;font-size:13px}
th,td{padding:5px 8px;text-align:right;white-space:nowrap;border-bottom:1px solid var(--grid)}
thead th{color:var(--dim);font-weight:500;font-size:12px;white-space:normal;vertical-align:bottom;border-bottom:1px solid var(--rule)}
th:first-child,td:nth-child(2),th:nth-child(2){text-align:left}
tbody th{font-weight:600;color:var(--fg);position:sticky;left:0;background:var(--bg);max-width:260px;overflow:hidden;text-overflow:ellipsis}
td.best{font-weight:700}
i{display:inline-block;width:10px;height:10px;border-radius:2px;margin-right:5px;background:currentColor;flex:none}
.t0{color:var(--k0)}.t1{color:var(--k1)}.t2{color:var(--k2)}.t3{color:var(--k3)}.t4{color:var(--k4)}.t5{color:var(--k5)}.t6{color:var(--k6)}.t7{color:var(--k7)}
tbody th i{background:currentColor}
th.t0 i{color:var(--k0)}th.t1 i{color:var(--k1)}th.t2 i{color:var(--k2)}th.t3 i{color:var(--k3)}th.t4 i{color:var(--k4)}th.t5 i{color:var(--k5)}th.t6 i{color:var(--k6)}th.t7 i{color:var(--k7)}
.grid2{display:grid;grid-template-columns:repeat(2,minmax(0,1fr));column-gap:40px}
.plot{display:grid;grid-template-columns:60px minmax(0,1fr) 58px;grid-template-rows:190px 18px 16px;position:relative}
.wide .plot{grid-template-rows:320px 18px 16px}
.plot.named{grid-template-columns:60px minmax(0,1fr) 180px}
.grid2 .plot.named{grid-template-columns:60px minmax(0,1fr) 128px}
.ys,.ends,.xs,.area{position:relative}
.ys span{position:absolute;right:8px;transform:translateY(-50%);color:var(--dim);font-size:12px;white-space:nowrap}
.area svg{width:100%;height:100%;display:block;overflow:hidden;border-bottom:1px solid var(--rule)}
.area{touch-action:pan-y}
.ends span{position:absolute;left:6px;right:0;transform:translateY(-50%);font-size:12px;line-height:1.1;white-space:nowrap;overflow:hidden;text-overflow:ellipsis}
.xs{grid-column:2;height:18px}
.xs span{position:absolute;transform:translateX(-50%);top:3px;color:var(--dim);font-size:12px;white-space:nowrap}
.xname{grid-column:2;color:var(--dim);font-size:12px;text-align:center}
.chart .legend{display:none}
.legend{display:flex;flex-wrap:wrap;gap:2px 16px;margin:0 0 8px;font-size:12.5px}
.legend span{white-space:nowrap}.legend b{font-weight:600}
path{vector-effect:non-scaling-stroke}
.grid{stroke:var(--grid);stroke-width:1;fill:none}
.line{fill:none;stroke-width:1.7;stroke-linejoin:round;stroke-linecap:round}
.faint{fill:none;stroke-width:1;opacity:.28;stroke-linecap:round}
.dots{fill:none;stroke-width:6;stroke-linecap:round}
.k0{stroke:var(--k0)}.k1{stroke:var(--k1)}.k2{stroke:var(--k2)}.k3{stroke:var(--k3)}.k4{stroke:var(--k4)}.k5{stroke:var(--k5)}.k6{stroke:var(--k6)}.k7{stroke:var(--k7)}
.cross{position:absolute;top:0;bottom:0;width:0;border-left:1px solid var(--dim);pointer-events:none}
.tip{position:absolute;z-index:9;pointer-events:none;background:var(--bg);border:1px solid var(--rule);border-radius:4px;box-shadow:0 2px 8px #0003;padding:5px 8px;font-size:12px;white-space:nowrap;max-width:90vw;overflow:hidden}
.totals{margin:0 0 8px;padding:0;list-style:none;font-size:13px}
.tracks{display:grid;grid-template-columns:96px minmax(0,1fr)}
.scroll{overflow-x:auto;overflow-y:hidden}
.inner{position:relative;min-width:100%;padding-right:1px}
.process{height:24px;font-weight:600;font-size:12.5px;padding-top:5px;white-space:nowrap;position:relative;z-index:1}
.tracks{overflow-x:hidden}
.track{height:24px;margin-bottom:3px;font-size:12px;line-height:24px;color:var(--dim)}
.inner .track{background:var(--soft)}
.track svg{display:block;width:100%;height:100%}
.predicted{height:14px;line-height:14px;opacity:.75}
.timeline .xs{height:20px}.timeline .xs span:first-child{transform:none}
.s0{fill:var(--fw)}.s1{fill:var(--bw)}.s2{fill:var(--up)}.s3,.s5{fill:var(--lost)}.s4{fill:var(--win)}
.i0{background:var(--fw)}.i1{background:var(--bw)}.i2{background:var(--up)}.i3,.i5{background:var(--lost)}.i4{background:var(--win)}
.i5{height:5px;vertical-align:2px}.i4{height:5px;vertical-align:2px}
.zooms{margin-left:auto}
.zooms button{font:inherit;color:inherit;background:none;border:1px solid var(--rule);border-radius:4px;padding:1px 9px;margin-left:4px;cursor:pointer}
.zooms button.on{background:var(--soft);color:var(--fg);font-weight:600}
.heat .row,.heat .head{display:grid;grid-template-columns:40px minmax(0,1fr) 54px;gap:8px;align-items:center;font-size:12px;color:var(--dim)}
.heat .row{height:18px}.heat .row svg{width:100%;height:16px;display:block}
.heat span:last-child{text-align:right}.heat span:first-child{text-align:right}
.h0{fill:var(--h0)}.h1{fill:var(--h1)}.h2{fill:var(--h2)}.h3{fill:var(--h3)}.h4{fill:var(--h4)}.h5{fill:var(--h5)}.h6{fill:var(--h6)}
.b0{background:var(--h0)}.b1{background:var(--h1)}.b2{background:var(--h2)}.b3{background:var(--h3)}.b4{background:var(--h4)}.b5{background:var(--h5)}.b6{background:var(--h6)}
.bar{height:11px;background:var(--k0);border-radius:1px}
.cuts{stroke:var(--bg);stroke-width:1}
.facts{margin:0;font-size:13px}
.facts div{display:grid;grid-template-columns:110px minmax(0,1fr);padding:4px 0;border-top:1px solid var(--grid)}
.facts dt{color:var(--dim)}.facts dd,.facts p{margin:0;overflow-wrap:anywhere}.facts span{color:var(--dim)}
@media (max-width:760px){main{padding:18px 14px 28px}.grid2{grid-template-columns:minmax(0,1fr)}
.plot,.plot.named,.grid2 .plot.named{grid-template-columns:56px minmax(0,1fr) 58px}.plot.named .ends{display:none}
.plot.named,.grid2 .plot.named{grid-template-columns:56px minmax(0,1fr) 12px}
.chart .legend{display:flex}.wide .plot{grid-template-rows:240px 18px 16px}
.tiles{gap:10px 20px}.tiles dd{font-size:16px}.tracks{grid-template-columns:78px minmax(0,1fr)}
.plot .xs span:nth-child(even):not(:last-child){display:none}.timeline .xs span:nth-child(even){display:none}
.facts div{grid-template-columns:86px minmax(0,1fr)}}
@media print{@page{margin:13mm}main{max-width:none;padding:0}figure,.facts div,tr{break-inside:avoid}h2{break-after:avoid}
.grid2{grid-template-columns:repeat(2,minmax(0,1fr));column-gap:24px}.plot{grid-template-rows:150px 18px 16px}.wide .plot{grid-template-rows:220px 18px 16px}
.zooms,.tip,.cross{display:none!important}.inner{width:100%!important}.wide-table{overflow:visible}table{font-size:10px}th,td{padding:3px 5px;white-space:normal}
*{-webkit-print-color-adjust:exact;print-color-adjust:exact}}
)css";
}

const char* report_script() {
  return R"js(
'use strict';
(()=>{
const tip=document.createElement('div');tip.className='tip';tip.hidden=true;document.body.append(tip);
const show=(lines,e)=>{tip.replaceChildren(...lines.map(([text,color])=>{const d=document.createElement('div');d.textContent=text;
if(color)d.style.color=color;return d}));tip.hidden=false;const w=tip.offsetWidth,x=e.pageX+14;
tip.style.left=Math.max(4,x+w>innerWidth+scrollX-8?e.pageX-w-14:x)+'px';tip.style.top=e.pageY+12+'px'};
const number=v=>{const a=Math.abs(v);return a&&(a<1e-3||a>=1e7)?v.toExponential(3):a>=1e4?Math.round(v).toLocaleString('en'):String(+v.toPrecision(5))};
for(const chart of document.querySelectorAll('.chart')){
const area=chart.querySelector('.area'),[x0,x1]=chart.dataset.x.split(',').map(Number),[y0,y1]=chart.dataset.y.split(',').map(Number),log=chart.dataset.log==='1';
const lines=[...area.querySelectorAll('.line')].map(path=>({path,points:(path.getAttribute('d').match(/[ML][^ML]+/g)||[]).map(p=>p.slice(1).split(/[ h]/).map(Number))}));
const cross=document.createElement('div');cross.className='cross';cross.hidden=true;area.append(cross);
area.addEventListener('pointermove',e=>{const box=area.getBoundingClientRect(),at=1000*(e.clientX-box.left)/box.width;let step=null,nearest=1e9;const rows=[];
for(const{path,points}of lines){let best=null;for(const p of points)if(!best||Math.abs(p[0]-at)<Math.abs(best[0]-at))best=p;if(!best)continue;
const d=Math.abs(best[0]-at);if(d<nearest){nearest=d;step=best[0]}
const f=1-best[1]/400,y=log?y0*Math.pow(y1/y0,f):y0+(y1-y0)*f;rows.push([(path.dataset.label||'')+' '+number(y),getComputedStyle(path).stroke])}
if(step===null)return;cross.hidden=false;cross.style.left=step/10+'%';show([['step '+Math.round(x0+(x1-x0)*step/1000).toLocaleString('en')],...rows],e)});
area.addEventListener('pointerleave',()=>{cross.hidden=tip.hidden=true})}
for(const figure of document.querySelectorAll('.timeline')){
const inner=figure.querySelector('.inner'),scroll=figure.querySelector('.scroll'),zooms=figure.querySelector('.zooms'),buttons=[...zooms.children];
zooms.hidden=false;const zoom=b=>{const middle=(scroll.scrollLeft+scroll.clientWidth/2)/inner.offsetWidth;for(const o of buttons)o.className=o===b?'on':'';
inner.style.width=100*b.dataset.zoom+'%';scroll.scrollLeft=middle*inner.offsetWidth-scroll.clientWidth/2};
for(const b of buttons)b.onclick=()=>zoom(b);zoom(buttons[0]);
const json=figure.querySelector('script');if(!json)continue;
const{tracks,texts}=JSON.parse(json.textContent),total=+figure.dataset.ns;
[...inner.querySelectorAll('.track')].forEach((element,i)=>{const spans=tracks[i];
element.addEventListener('pointermove',e=>{const box=element.getBoundingClientRect(),at=total*(e.clientX-box.left)/box.width,slack=2*total/box.width,found=[];
for(let s=0;s<spans.length&&found.length<4;s+=3)if(spans[s]<=at+slack&&at-slack<=spans[s]+spans[s+1]){
const[name,scope]=texts[spans[s+2]].split('\n');found.push([name+'  '+number(spans[s+1]/1e6)+' ms  '+scope])}
if(found.length)show(found,e);else tip.hidden=true});
element.addEventListener('pointerleave',()=>{tip.hidden=true})})}
})();
)js";
}

}  // namespace farskip
